//! System call filters: compiled to BPF once per profile, loaded just before a program is executed.
#![allow(unsafe_code)]

mod localhost;
mod profile;
mod table;

pub use localhost::from_file;
pub use profile::{oci_default, runtime_default};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use std::collections::BTreeMap;
use std::io;

/// BPF programs, loaded in this order; the kernel takes the strictest answer, and the latest among equals.
#[derive(Debug, Clone, Default)]
pub struct Filters(Vec<BpfProgram>);

/// What was wrong with a profile.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The file could not be read.
    #[error("cannot read the seccomp profile")]
    Read(#[source] io::Error),
    /// The file isn't an OCI seccomp profile.
    #[error("the seccomp profile is not valid: {0}")]
    Invalid(String),
    /// It could not be turned into BPF.
    #[error("the seccomp profile cannot be compiled")]
    Compile(#[source] seccompiler::BackendError),
}

impl Filters {
    /// No filter at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Loads them into the calling process. It needs CAP_SYS_ADMIN or no_new_privs, and changes neither.
    pub fn load(&self) -> io::Result<()> {
        #[repr(C)]
        struct Program {
            length: libc::c_ushort,
            code: *const sock_filter,
        }
        for code in &self.0 {
            let length = libc::c_ushort::try_from(code.len()).map_err(io::Error::other)?;
            let program = Program { length, code: code.as_ptr() };
            // SAFETY: the kernel copies the program, whose length and place are those of `code`.
            let result = unsafe {
                libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0 as libc::c_ulong, &raw const program)
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn target() -> Result<TargetArch, SeccompError> {
    std::env::consts::ARCH.try_into().map_err(SeccompError::Compile)
}

fn compile(rules: Rules, mismatch: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, SeccompError> {
    SeccompFilter::new(rules, mismatch, matched, target()?)
        .and_then(BpfProgram::try_from)
        .map_err(SeccompError::Compile)
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, SeccompError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value).map_err(SeccompError::Compile)
}

/// The same for what the kernel takes as an int: the upper half of the register means nothing to it.
fn int_condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, SeccompError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(SeccompError::Compile)
}

fn only_if(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, SeccompError> {
    SeccompRule::new(conditions).map_err(SeccompError::Compile)
}
