//! The writing half of the connection: takes what the core has to say and sends it, in order.
//!
//! It never waits for the reading half. Small messages that wait together leave together; a listing
//! leaves as the slices that it is, some hundreds of kilobytes with each call of the kernel.

use std::rc::Rc;

use cores::rt;
use cores::side::{Buffer, Excerpt, Fd, Side};

use crate::bus::queue::Out;
use crate::bus::run::{BusFault, Shared};

/// Writes until we leave and nothing is left.
pub(super) async fn write(side: Rc<Side>, socket: Fd, shared: Rc<Shared>) -> Result<(), BusFault> {
    loop {
        rt::stage("wait");
        let Some(out) = shared.to_send().await else {
            return Ok(());
        };
        match out {
            Out::Bytes(bytes) => {
                rt::stage("send");
                send(&side, &socket, bytes).await?;
            }
            Out::Listing(mut listing) => {
                rt::stage("list");
                while let Some(excerpts) = listing.poll_excerpts() {
                    send_slices(&side, &socket, excerpts).await?;
                }
            }
        }
        shared.sent();
    }
}

async fn send(side: &Rc<Side>, socket: &Fd, bytes: Vec<u8>) -> Result<(), BusFault> {
    let mut buffer = Buffer::from(bytes);
    let mut sent = 0;
    while sent < buffer.len() {
        let (result, back) = side.send(socket, buffer, sent).await;
        buffer = back;
        sent += result.map_err(|error| BusFault::Socket { doing: "write", error })?;
    }
    Ok(())
}

async fn send_slices(side: &Rc<Side>, socket: &Fd, mut excerpts: Vec<Excerpt>) -> Result<(), BusFault> {
    let length: usize = excerpts.iter().flat_map(Excerpt::slices).map(<[u8]>::len).sum();
    let mut sent = 0;
    while sent < length {
        let (result, back) = side.send_slices(socket, excerpts, sent).await;
        excerpts = back;
        sent += result.map_err(|error| BusFault::Socket { doing: "write", error })?;
    }
    Ok(())
}
