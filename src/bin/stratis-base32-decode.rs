//! `stratis-base32-decode KEY VALUE` prints `KEY=name`: how udev gets a pool's or a filesystem's name
//! out of the event that the daemon sends.
//!
//! Invariant: what it prints is one line, and the name is one that a pool or a filesystem may have: it
//! becomes part of a path below /dev.

use std::env;
use std::process::ExitCode;

use data_encoding::BASE32_NOPAD;
use stratisd::model::name::Name;

fn decoded(value: &str) -> Result<Name, String> {
    let bytes = BASE32_NOPAD.decode(value.as_bytes()).map_err(|fault| format!("{value:?} is not base32: {fault}"))?;
    let text = String::from_utf8(bytes).map_err(|fault| format!("{value:?} holds no text: {fault}"))?;
    Name::try_from(text.as_str()).map_err(|fault| fault.to_string())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let [key, value] = arguments.as_slice() else {
        eprintln!("use: stratis-base32-decode KEY VALUE");
        return ExitCode::from(2);
    };
    match decoded(value) {
        Ok(name) => {
            println!("{key}={}", name.as_str());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("stratis-base32-decode: {why}");
            ExitCode::FAILURE
        }
    }
}
