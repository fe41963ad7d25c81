//! Finds and executes the program of a container, in words that tell the pod's author what is wrong.
//!
//! libcontainer's own executor wants every program to be executable by others and reports a missing one in its own words.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::fs::{Access, AtFlags, CWD, accessat};

/// Executes a file of the container's root filesystem.
#[derive(Clone)]
pub(super) struct FileExecutor;

impl Executor for FileExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = args(spec).ok_or(ExecutorError::InvalidArg)?;
        let program = find(spec).map_err(ExecutorError::Other)?;
        let program = CString::new(program.into_os_string().into_encoded_bytes()).map_err(|_| ExecutorError::InvalidArg)?;
        let args: Result<Vec<CString>, _> = args.iter().map(|arg| CString::new(arg.as_bytes())).collect();
        let args = args.map_err(|_| ExecutorError::InvalidArg)?;
        match nix::unistd::execv(&program, &args) {
            Ok(never) => match never {},
            Err(error) => Err(ExecutorError::Other(format!("executing {}: {}", program.to_string_lossy(), error.desc()))),
        }
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find(spec).map(|_| ()).map_err(ExecutorValidationError::ArgValidationError)
    }
}

fn args(spec: &Spec) -> Option<&Vec<String>> {
    spec.process().as_ref()?.args().as_ref().filter(|args| !args.is_empty())
}

/// The path of the program, by the rules of `execvp` with the container's own PATH.
fn find(spec: &Spec) -> Result<PathBuf, String> {
    let name = args(spec).and_then(|args| args.first()).ok_or("the process has no arguments")?;
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else {
        let env = spec.process().as_ref().and_then(|process| process.env().as_ref());
        let path = env.and_then(|env| env.iter().find_map(|pair| pair.strip_prefix("PATH="))).unwrap_or("/usr/bin:/bin");
        path.split(':').map(|folder| Path::new(if folder.is_empty() { "." } else { folder }).join(name)).collect()
    };
    let mut found = None;
    for candidate in candidates {
        if candidate.is_file() {
            if accessat(CWD, &candidate, Access::EXEC_OK, AtFlags::EACCESS).is_ok() {
                return Ok(candidate);
            }
            found = Some(candidate);
        }
    }
    Err(match found {
        Some(file) => format!("the file {} is not executable: Permission denied", file.display()),
        None => format!("the file {name} was not found: executable file not found in $PATH: No such file or directory"),
    })
}
