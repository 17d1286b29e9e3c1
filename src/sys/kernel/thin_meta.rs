//! Checking the metadata of thin pools, and repairing it, by the programs that were made for that.
//!
//! Invariant: what cannot be run or takes too long is an error, never an answer.
//!
//! Deliberately absent: a look at the metadata by ourselves; when to check, and what to do about the answer.

use std::process::ExitStatus;
use std::time::Duration;

use super::dm::node;
use super::lanes::blocking;
use super::{KernelSys, program};
use crate::error::{Failure, Fault, Refusal, Why};
use crate::limits::THIN_PROGRAM_WAIT_MS;
use crate::model::dm::Dm;

const CHECK: &str = "thin_check";
const REPAIR: &str = "thin_repair";

/// Says at the start which programs will be missed.
pub(super) fn look_for_programs() {
    for program in [CHECK, REPAIR].into_iter().filter(|program| program::find(program).is_none()) {
        log::warn!("pools may not start: {}", Refusal::NoProgram { program });
    }
}

impl KernelSys {
    pub(super) async fn check_metadata(&self, device: Dm) -> Result<bool, Failure> {
        // What it repairs by itself is nothing that a filesystem has to do with: blocks that are lost to the
        // pool, and the mark that asks for a check.
        let (status, said) = self.run(CHECK, &[("--auto-repair", device)]).await?;
        match status.code() {
            Some(0) => Ok(true),
            Some(_) => {
                log::error!("metadata of a thin pool is not whole (device={device}): {said}");
                Ok(false)
            }
            None => Err(Fault::new("check the metadata on", device, Why::Data("the program was killed")).into()),
        }
    }

    pub(super) async fn repair_metadata(&self, from: Dm, to: Dm) -> Result<(), Failure> {
        let (status, said) = self.run(REPAIR, &[("--input", from), ("--output", to)]).await?;
        if status.success() {
            return Ok(());
        }
        log::error!("metadata of a thin pool cannot be repaired (device={from}): {said}");
        Err(Fault::new("repair the metadata on", from, Why::Data("thin_repair gives up, the log says why")).into())
    }

    /// Runs a program on devices, each behind an option.
    async fn run(&self, program: &'static str, arguments: &[(&str, Dm)]) -> Result<(ExitStatus, String), Failure> {
        let path = program::find(program).ok_or(Refusal::NoProgram { program })?;
        let subject = arguments[0].1;
        let fault = |why| Fault::new("run a program on", format!("{subject}: {program}"), why);
        let mut words = Vec::new();
        for (option, device) in arguments {
            let number = self.inner.mapper.number(*device).await.map_err(fault)?;
            words.extend([(*option).to_owned(), node(number).display().to_string()]);
        }
        let wait = Duration::from_millis(THIN_PROGRAM_WAIT_MS);
        Ok(blocking(&self.inner.lanes.programs, move || program::run(path, &words, wait)).await.map_err(fault)?)
    }
}
