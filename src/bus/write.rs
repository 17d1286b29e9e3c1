//! The writing half of the connection: takes what the core has to say and sends it, in order.
//!
//! It never waits for the reading half. Small messages that wait together leave together.

use std::rc::Rc;

use cores::rt;
use cores::side::{Buffer, Fd, Side};

use crate::bus::run::{BusFault, Shared};

/// Writes until we leave and nothing is left.
pub(super) async fn write(side: Rc<Side>, socket: Fd, shared: Rc<Shared>) -> Result<(), BusFault> {
    loop {
        rt::stage("wait");
        let Some(bytes) = shared.to_send().await else {
            return Ok(());
        };
        rt::stage("send");
        let mut buffer = Buffer::from(bytes);
        let mut sent = 0;
        while sent < buffer.len() {
            let (result, back) = side.send(&socket, buffer, sent).await;
            buffer = back;
            sent += result.map_err(|error| BusFault::Socket { doing: "write", error })?;
        }
        shared.sent();
    }
}
