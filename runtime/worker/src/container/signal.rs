//! The signal that ends a container: its name as the spec, an image and the status have it, and its number.

use nix::sys::signal::Signal;
use std::str::FromStr;

/// The first real-time signal and the last, as glibc counts them.
const FIRST_REAL_TIME: i32 = 34;
const LAST_REAL_TIME: i32 = 64;
/// Second names of signals.
const ALIASES: [(&str, Signal); 3] =
    [("SIGCLD", Signal::SIGCHLD), ("SIGIOT", Signal::SIGABRT), ("SIGPOLL", Signal::SIGIO)];

/// One signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StopSignal {
    pub number: i32,
    /// `SIGTERM`, `SIGRTMIN+3`: as a status shows it.
    pub name: String,
}

impl StopSignal {
    /// Reads it as images write it (`SIGQUIT`, `quit`, `3`); SIGTERM where there is none or it is unknown.
    pub fn read(text: Option<&str>) -> Self {
        text.filter(|text| !text.is_empty()).and_then(Self::parse).unwrap_or_else(|| Self::of(Signal::SIGTERM))
    }

    fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<i32>() {
            return Self::numbered(number);
        }
        let upper = text.to_ascii_uppercase();
        let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
        let alias = ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, signal)| *signal as i32);
        let plain = || Signal::from_str(&name).ok().map(|signal| signal as i32);
        let number = alias.or_else(|| real_time(&name)).or_else(plain)?;
        Some(Self { number, name })
    }

    fn numbered(number: i32) -> Option<Self> {
        if let Ok(signal) = Signal::try_from(number) {
            return Some(Self::of(signal));
        }
        let name = match number {
            FIRST_REAL_TIME => "SIGRTMIN".to_owned(),
            LAST_REAL_TIME => "SIGRTMAX".to_owned(),
            35..=49 => format!("SIGRTMIN+{}", number - FIRST_REAL_TIME),
            50..=63 => format!("SIGRTMAX-{}", LAST_REAL_TIME - number),
            _ => return None,
        };
        Some(Self { number, name })
    }

    fn of(signal: Signal) -> Self {
        Self { number: signal as i32, name: signal.as_str().to_owned() }
    }
}

fn real_time(name: &str) -> Option<i32> {
    let (first, last) = (name.strip_prefix("SIGRTMIN"), name.strip_prefix("SIGRTMAX"));
    let number = match (first, last) {
        (Some(""), _) => FIRST_REAL_TIME,
        (_, Some("")) => LAST_REAL_TIME,
        (Some(offset), _) => FIRST_REAL_TIME + offset.strip_prefix('+')?.parse::<i32>().ok()?,
        (_, Some(offset)) => LAST_REAL_TIME - offset.strip_prefix('-')?.parse::<i32>().ok()?,
        (None, None) => return None,
    };
    (FIRST_REAL_TIME..=LAST_REAL_TIME).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_images_and_specs_write_them() {
        for (text, number, name) in [
            (None, 15, "SIGTERM"),
            (Some("SIGQUIT"), 3, "SIGQUIT"),
            (Some("quit"), 3, "SIGQUIT"),
            (Some("9"), 9, "SIGKILL"),
            (Some("SIGRTMIN+3"), 37, "SIGRTMIN+3"),
            (Some("37"), 37, "SIGRTMIN+3"),
            (Some("SIGRTMAX-14"), 50, "SIGRTMAX-14"),
            (Some("SIGRTMIN+99"), 15, "SIGTERM"),
            (Some("SIGPOLL"), 29, "SIGPOLL"),
            (Some("x"), 15, "SIGTERM"),
            (Some("999"), 15, "SIGTERM"),
        ] {
            assert_eq!(StopSignal::read(text), StopSignal { number, name: name.to_owned() }, "{text:?}");
        }
    }
}
