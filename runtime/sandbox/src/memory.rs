//! What a process that lives long needs only now and then, given back to the machine.
//!
//! Much of what stays resident after a start or a storm are pages of the program itself that were mapped when they were
//! needed. They aren't lost: each comes back from the page cache when it is touched, at a fraction of a microsecond. What the
//! allocator keeps is the program's own business.
#![allow(unsafe_code)]

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;

/// Gives them back. Threads that run meanwhile go on; they fault in what they touch.
pub fn give_back() {
    for range in read_only_parts() {
        // SAFETY: the range is a private mapping of this program's file that was never writable, so each of its pages is
        // as in the file and is read from there when it is touched again.
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    }
}

/// Where this program's code and constants are mapped. Constants that the loader adjusted aren't among them.
fn read_only_parts() -> Vec<Range<usize>> {
    let (Ok(own), Ok(maps)) = (fs::metadata("/proc/self/exe"), fs::read_to_string("/proc/self/maps")) else {
        return Vec::new();
    };
    let device = format!("{:02x}:{:02x}", libc::major(own.dev()), libc::minor(own.dev()));
    maps.lines().filter_map(|line| read_only_part(line, &device, own.ino())).collect()
}

/// A line of `/proc/self/maps`: addresses, permissions, offset, device, inode, path (proc_pid_maps(5)).
fn read_only_part(line: &str, device: &str, inode: u64) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (addresses, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    if fields.next()? != device || fields.next()?.parse() != Ok(inode) {
        return None;
    }
    let code = permissions == "r-xp";
    // What the loader writes to, and protects afterwards, lies behind the code: only the first part is constant as it is.
    let constants = permissions == "r--p" && u64::from_str_radix(offset, 16) == Ok(0);
    if !code && !constants {
        return None;
    }
    let (start, end) = addresses.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_after_its_pages_are_given_back() {
        let parts = read_only_parts();
        let here = the_program_goes_on_after_its_pages_are_given_back as *const () as usize;
        assert!(parts.iter().any(|part| part.contains(&here)), "{here:x} is not in {parts:x?}");
        let text = "kept ".repeat(1000);
        give_back();
        assert_eq!(text.matches("kept").count(), 1000);
    }

    #[test]
    fn only_what_was_never_written_is_given_back() {
        let part = |line| read_only_part(line, "fe:00", 42);
        assert_eq!(part("1000-3000 r-xp 00d31000 fe:00 42 /bin/x"), Some(0x1000..0x3000));
        assert_eq!(part("1000-3000 r--p 00000000 fe:00 42 /bin/x"), Some(0x1000..0x3000));
        for other in [
            "1000-3000 r--p 03d23000 fe:00 42 /bin/x",
            "1000-3000 rw-p 03d23000 fe:00 42 /bin/x",
            "1000-3000 r-xp 00000000 fe:00 43 /lib/y",
            "1000-3000 r-xp 00000000 fe:01 42 /lib/y",
            "1000-3000 rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(part(other), None, "{other}");
        }
    }
}
