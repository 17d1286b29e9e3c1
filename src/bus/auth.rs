//! Who we are: the SASL conversation that opens a D-Bus connection, as a machine without a socket.
//!
//! ```text
//! Credentials --OK--> Descriptors --AGREE_UNIX_FD or ERROR--> Done
//! ```
//!
//! The kernel tells the bus our uid (EXTERNAL); we only say which one it will find. After `Done` the
//! connection carries messages.

use thiserror::Error;

/// Longest line that a bus may send us before the messages begin.
const LINE_BYTES_MAX: usize = 4_096;

/// The bus does not let us in.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum AuthFault {
    /// It does not believe us.
    #[error("the bus refuses user {uid}: {said}")]
    Refused {
        /// Who we said we are.
        uid: u32,
        /// What it answered.
        said: String,
    },
    /// It does not speak D-Bus.
    #[error("the bus says {0:?}, which is not D-Bus")]
    Nonsense(String),
    /// A line without end.
    #[error("the bus says more than {LINE_BYTES_MAX} bytes without an end of line")]
    Long,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Credentials,
    Descriptors,
    Done,
}

/// The conversation.
#[derive(Debug)]
pub struct Auth {
    uid: u32,
    state: State,
    line: Vec<u8>,
    out: Vec<u8>,
    descriptors: bool,
}

impl Auth {
    /// For a process of this user.
    pub fn new(uid: u32) -> Self {
        let hex: String = uid.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        let out = format!("\0AUTH EXTERNAL {hex}\r\n").into_bytes();
        Self { uid, state: State::Credentials, line: Vec::new(), out, descriptors: false }
    }

    /// What the bus sent.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), AuthFault> {
        for byte in bytes {
            self.line.push(*byte);
            if self.line.ends_with(b"\r\n") {
                let line = String::from_utf8_lossy(&self.line[..self.line.len() - 2]).into_owned();
                self.line.clear();
                self.handle_line(&line)?;
            }
            if self.line.len() > LINE_BYTES_MAX {
                return Err(AuthFault::Long);
            }
        }
        Ok(())
    }

    fn handle_line(&mut self, line: &str) -> Result<(), AuthFault> {
        let word = line.split(' ').next().unwrap_or_default();
        match (self.state, word) {
            (State::Credentials, "OK") => {
                self.state = State::Descriptors;
                self.out.extend_from_slice(b"NEGOTIATE_UNIX_FD\r\n");
            }
            (State::Credentials, "REJECTED" | "ERROR") => {
                return Err(AuthFault::Refused { uid: self.uid, said: line.to_owned() });
            }
            (State::Descriptors, "AGREE_UNIX_FD" | "ERROR") => {
                self.state = State::Done;
                self.descriptors = word == "AGREE_UNIX_FD";
                self.out.extend_from_slice(b"BEGIN\r\n");
            }
            (State::Credentials | State::Descriptors | State::Done, _) => {
                return Err(AuthFault::Nonsense(line.to_owned()));
            }
        }
        Ok(())
    }

    /// What the bus must be sent now.
    pub fn poll_bytes(&mut self) -> Option<Vec<u8>> {
        (!self.out.is_empty()).then(|| std::mem::take(&mut self.out))
    }

    /// Whether what follows are messages.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether messages may carry descriptors.
    pub const fn carries_descriptors(&self) -> bool {
        self.descriptors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(lines: &str) -> Result<(Auth, String), AuthFault> {
        let mut auth = Auth::new(1000);
        let mut said = auth.poll_bytes().expect("we begin");
        for byte in lines.bytes() {
            auth.handle_bytes(&[byte])?;
            said.extend(auth.poll_bytes().unwrap_or_default());
        }
        Ok((auth, String::from_utf8(said).expect("text")))
    }

    #[test]
    fn the_conversation_is_that_of_the_specification() {
        let (auth, said) = talk("OK 1234\r\nAGREE_UNIX_FD\r\n").expect("we are let in");
        assert!(auth.is_done() && auth.carries_descriptors());
        assert_eq!(said, "\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
    }

    #[test]
    fn a_bus_without_descriptors_will_do() {
        let (auth, _) = talk("OK 1234\r\nERROR\r\n").expect("we are let in");
        assert!(auth.is_done() && !auth.carries_descriptors());
    }

    #[test]
    fn every_other_answer_ends_it() {
        assert!(matches!(talk("REJECTED EXTERNAL\r\n"), Err(AuthFault::Refused { uid: 1000, .. })));
        assert!(matches!(talk("HTTP/1.1 400\r\n"), Err(AuthFault::Nonsense(_))));
        assert!(matches!(talk("OK 1\r\nOK 2\r\n"), Err(AuthFault::Nonsense(_))));
        assert_eq!(talk(&"x".repeat(5_000)).expect_err("too long"), AuthFault::Long);
    }
}
