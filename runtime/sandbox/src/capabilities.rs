//! Capability sets as numbers, and the last steps of every program: filter, capabilities, no_new_privs.
#![allow(unsafe_code)]

use crate::ALL_CAPABILITIES;
use crate::kernel::process::prctl;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use std::io;

/// A set of capabilities, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapabilitySet(pub u64);

impl CapabilitySet {
    /// From names as in `CAP_CHOWN`; gives back the first that isn't one.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<Self, String> {
        let mut bits = 0u64;
        for name in names {
            let number = ALL_CAPABILITIES.iter().position(|known| known == name).ok_or_else(|| name.clone())?;
            bits |= 1 << number;
        }
        Ok(Self(bits))
    }

    /// What this process may still pass on: its bounding set.
    pub fn bounding() -> Self {
        let mut bits = 0u64;
        for number in 0..ALL_CAPABILITIES.len() {
            // SAFETY: plain numbers; an unknown capability answers an error.
            if unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } == 1 {
                bits |= 1 << number;
            }
        }
        Self(bits)
    }

    /// Those in both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether the named capability is in it.
    pub fn has(self, name: &str) -> bool {
        ALL_CAPABILITIES.iter().position(|known| *known == name).is_some_and(|number| self.0 & (1 << number) != 0)
    }
}

/// Drops everything outside `keep` from the bounding set. Needs CAP_SETPCAP.
pub fn drop_bounding(keep: CapabilitySet) -> io::Result<()> {
    for number in 0..64u32 {
        if keep.0 & (1 << number) != 0 {
            continue;
        }
        // SAFETY: plain numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) } < 0 {
            let error = io::Error::last_os_error();
            // The kernel knows no capability of this number, nor any higher one.
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Sets permitted and effective to `set`, inheritable and ambient to nothing.
pub fn set(set: CapabilitySet) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    prctl(libc::PR_CAP_AMBIENT, libc::c_ulong::from(libc::PR_CAP_AMBIENT_CLEAR_ALL.unsigned_abs()))?;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |word: u64| {
        let bits = u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
        Data { effective: bits, permitted: bits, inheritable: 0 }
    };
    let data = [half(set.0), half(set.0 >> 32)];
    // SAFETY: both structures are the kernel's for this version and outlive the call.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Does something whose files belong to another user, and come with all rights. To the kernel, who isn't root loses some.
pub fn as_owner<T>(owner: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    let (uid, gid) = (setfsuid(Uid::from_raw(owner)), setfsgid(Gid::from_raw(owner)));
    let done = raise_effective().map(|()| work());
    setfsgid(gid);
    setfsuid(uid);
    // Neither is who was no root before raised by going back.
    raise_effective()?;
    done
}

/// Makes all permitted capabilities effective (after a change of user with PR_SET_KEEPCAPS), inheritable to nothing.
pub fn raise_effective() -> io::Result<()> {
    let permitted = caps::read(None, caps::CapSet::Permitted).map_err(io::Error::other)?;
    caps::set(None, caps::CapSet::Effective, &permitted).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels_numbers() {
        let names: Vec<String> = ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"].map(str::to_owned).into();
        assert_eq!(CapabilitySet::from_names(&names), Ok(CapabilitySet(1 | 1 << 21 | 1 << 40)));
        assert_eq!(CapabilitySet::from_names(&["CAP_NOPE".to_owned()]), Err("CAP_NOPE".to_owned()));
    }
}
