//! What a command prints. A reader that has heard enough (`basalt status | head -n1`) closes the pipe: that is no failure, what is printed
//! afterwards goes nowhere, and the command ends as it would have. The standard macros panic instead.

use std::{
    fmt,
    io::{self, Write},
    sync::OnceLock,
};

use crate::exit::{Failure, Outcome};

/// The first error of the standard output that is none of a reader who went away.
static LOST: OnceLock<String> = OnceLock::new();

/// Prints a line on the standard output, as `println!` does.
macro_rules! say {
    ($($arg:tt)*) => { $crate::say::out(format_args!("{}\n", format_args!($($arg)*))) };
}

/// Prints a line on the standard error, as `eprintln!` does.
macro_rules! tell {
    ($($arg:tt)*) => { $crate::say::err(format_args!("{}\n", format_args!($($arg)*))) };
}

pub(crate) use {say, tell};

/// Prints on the standard output.
pub fn out(text: fmt::Arguments<'_>) {
    if let Err(err) = write(io::stdout().lock(), text) {
        // The first one says why; a second one says nothing new.
        let _ = LOST.set(err.to_string());
    }
}

/// Prints on the standard error; where that is not possible there is nobody to be told.
pub fn err(text: fmt::Arguments<'_>) {
    let _ = write(io::stderr().lock(), text);
}

fn write(mut to: impl Write, text: fmt::Arguments<'_>) -> io::Result<()> {
    match to.write_fmt(text).and_then(|()| to.flush()) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Fails if something that was printed is lost: a script must not take a cut answer for a whole one.
pub fn all_said() -> Outcome {
    match LOST.get() {
        None => Ok(()),
        Some(why) => Err(Failure::new(format!("write to the standard output: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Full(io::ErrorKind);

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_went_away_is_no_failure_and_a_full_disk_is_one() {
        assert!(write(Full(io::ErrorKind::BrokenPipe), format_args!("x")).is_ok());
        assert!(write(Full(io::ErrorKind::StorageFull), format_args!("x")).is_err());
    }
}
