//! The allocator. A request makes and drops hundreds of small values on one of a few threads, which jemalloc does in three
//! quarters of the time that the C library takes for it, and it gives back more readily what a storm needed.
#![allow(unsafe_code)]

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Few arenas, because each keeps some pages of its own; pages that nobody has used for a second are the kernel's again. There
/// are no threads for that: the spawner, the same program, must never have any.
// SAFETY: jemalloc reads a symbol of this name, once, as a string that ends with a zero byte.
#[unsafe(export_name = "_rjem_malloc_conf")]
static CONFIGURATION: &[u8; 47] = b"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

/// Gives back at once what is free.
pub fn give_back() {
    // SAFETY: the name ends with a zero byte, and the call takes and answers nothing.
    let failure = unsafe {
        tikv_jemalloc_sys::mallctl(
            c"arena.4096.purge".as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            0,
        )
    };
    if failure != 0 {
        tracing::warn!(error = %std::io::Error::from_raw_os_error(failure), "memory is not given back");
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    /// A number among jemalloc's settings.
    fn setting<T: Default>(name: &CStr) -> T {
        let mut value = T::default();
        let mut size = size_of::<T>();
        // SAFETY: jemalloc writes no more than the size that it is told, and fails where that isn't the setting's.
        let failure = unsafe {
            tikv_jemalloc_sys::mallctl(name.as_ptr(), (&raw mut value).cast(), &raw mut size, std::ptr::null_mut(), 0)
        };
        assert_eq!(failure, 0, "{name:?}");
        value
    }

    #[test]
    fn the_configuration_is_in_force() {
        assert_eq!(setting::<u32>(c"opt.narenas"), 2);
        assert_eq!(setting::<isize>(c"opt.dirty_decay_ms"), 1000);
        assert!(!setting::<bool>(c"opt.background_thread"));
    }

    /// Resident memory of this process, in KiB.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    #[test]
    fn what_is_free_is_given_back() {
        let large: Vec<Vec<u8>> = (0..4096).map(|_| vec![1; 16 * 1024]).collect();
        let with = resident();
        drop(large);
        super::give_back();
        let without = resident();
        assert!(without + 48 * 1024 < with, "{with} KiB, then {without} KiB");
    }
}
