//! `stratis-str-cmp A B` prints 0 when both are the same and 1 when not: udev's rules compare a
//! property with a fixed text only, not with another property.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = env::args_os().skip(1).collect();
    let [one, other] = words.as_slice() else {
        eprintln!("use: stratis-str-cmp A B");
        return ExitCode::from(2);
    };
    println!("{}", u8::from(one != other));
    ExitCode::SUCCESS
}
