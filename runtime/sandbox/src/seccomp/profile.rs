//! The runtime's default profile: containerd's allow-list as data, cut to a container's capabilities.

use super::{Filters, Rules, SeccompError, compile, int_condition, only_if, table};
use crate::capabilities::CapabilitySet;
use seccompiler::{SeccompAction, SeccompCmpOp, sock_filter};

/// The flags of clone(2) that make a namespace (all but the time namespace, which clone cannot make).
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
/// What personality(2) may be set to: Linux, 32-bit, without address randomisation of either, and asking.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
const AF_VSOCK: u64 = 40;

/// Allowed always.
const ALLOWED: &str = "
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown clock_adjtime
clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat
exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat
fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue
futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid
geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid
getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl
ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat
listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier
memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync
munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal
pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease
process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl
semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid
setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt
setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat
statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask
uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write writev
";

/// Allowed beyond that with a capability.
const WITH_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
         lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday clock_settime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// The default profile for a program with these capabilities.
pub fn runtime_default(capabilities: CapabilitySet) -> Result<Filters, SeccompError> {
    let mut rules = Rules::new();
    let allow = |rules: &mut Rules, names: &str| {
        for name in names.split_whitespace() {
            // Names of another architecture have no number here.
            if let Some(number) = table::number(name) {
                rules.insert(number, Vec::new());
            }
        }
    };
    allow(&mut rules, ALLOWED);
    for (capability, names) in WITH_CAPABILITY {
        if capabilities.has(capability) {
            allow(&mut rules, names);
        }
    }
    rules.insert(libc::SYS_socket, vec![only_if(vec![int_condition(0, SeccompCmpOp::Ne, AF_VSOCK)?])?]);
    let mut personalities = Vec::new();
    for value in PERSONALITIES {
        personalities.push(only_if(vec![int_condition(0, SeccompCmpOp::Eq, value)?])?);
    }
    rules.insert(libc::SYS_personality, personalities);
    let admin = capabilities.has("CAP_SYS_ADMIN");
    if !admin {
        let plain = int_condition(0, SeccompCmpOp::MaskedEq(CLONE_NAMESPACES), 0)?;
        rules.insert(libc::SYS_clone, vec![only_if(vec![plain])?]);
    }
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let mut program = unknown_calls(!admin);
    program.extend(compile(rules, refused, SeccompAction::Allow)?);
    Ok(Filters(vec![program]))
}

/// The same profile as the OCI specification writes it, for other runtimes.
pub fn oci_default(capabilities: CapabilitySet) -> serde_json::Value {
    use serde_json::json;
    let mut names: Vec<&str> = ALLOWED.split_whitespace().collect();
    for (capability, more) in WITH_CAPABILITY {
        if capabilities.has(capability) {
            names.extend(more.split_whitespace());
        }
    }
    let only = |name: &str, args: serde_json::Value| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args});
    let argument = |value: u64, op: &str| json!([{"index": 0, "value": value, "op": op}]);
    let mut calls = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    calls.push(only("socket", argument(AF_VSOCK, "SCMP_CMP_NE")));
    calls.extend(PERSONALITIES.map(|value| only("personality", argument(value, "SCMP_CMP_EQ"))));
    if !capabilities.has("CAP_SYS_ADMIN") {
        let masked = json!([{"index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]);
        calls.push(only("clone", masked));
        calls.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}));
    }
    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": libc::EPERM, "syscalls": calls})
}

/// Goes before the list: calls that this table doesn't know yet answer ENOSYS and not EPERM, so that programs fall back
/// to older ones; and so does clone3 (its flags are in memory, where no filter can look), so that libraries use clone.
fn unknown_calls(refuse_clone3: bool) -> Vec<sock_filter> {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let unavailable = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    // The x32 calls are all above, too.
    let first_unknown = table::LAST_KNOWN + 1;
    let clone3 = if refuse_clone3 { u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX) } else { u32::MAX };
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        step(LOAD_WORD, 0, 0, 0),
        step(JUMP_EQUAL, 1, 0, clone3),
        step(JUMP_GREATER_EQUAL, 0, 1, first_unknown),
        step(RETURN, 0, 0, unavailable),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_profile_is_in_the_table_of_this_architecture() {
        if std::env::consts::ARCH != "x86_64" {
            return;
        }
        let all = WITH_CAPABILITY.iter().map(|(_, names)| *names).chain([ALLOWED]);
        let missing: Vec<&str> =
            all.flat_map(str::split_whitespace).filter(|name| table::number(name).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_filter_fits_the_kernels_limit_and_shrinks_with_the_capabilities() {
        let none = runtime_default(CapabilitySet(0)).expect("compiles");
        let all = runtime_default(CapabilitySet(u64::MAX)).expect("compiles");
        assert!(none.0[0].len() < 4096);
        assert!(none.0[0].len() < all.0[0].len());
    }
}
