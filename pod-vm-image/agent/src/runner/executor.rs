//! The last steps of a process before it is the container's own program.
//!
//! libcontainer calls [`FileExecutor::validate`] inside of the container while a failure is still one of creating it, and
//! [`FileExecutor::exec`] once it is started. By then it has changed the user but, as the specification that it gets names no
//! capabilities, kept them all: what takes some is done here, and then they are given up.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::sys::stat::{Mode, umask};

use super::seccomp::Filter;
use super::{LoadFilter, credentials, environment, program};
use crate::control::Confinement;
use crate::failure::text;

/// Executes a file of the container's root filesystem.
#[derive(Clone)]
pub(super) struct FileExecutor {
    /// A container's first process, not one that joins it.
    pub(super) is_init: bool,
    pub(super) confinement: Confinement,
    pub(super) filter: Option<Arc<Filter>>,
    pub(super) load: LoadFilter,
    pub(super) prepared: OnceCell<Prepared>,
}

/// What is to be executed.
#[derive(Clone)]
pub(super) struct Prepared {
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

/// Umask of a process for which none is given.
const UMASK: u32 = 0o022;
/// Enclose what is meant for the pod's author in the texts that libcontainer makes of our errors.
const BEGIN: char = '\u{2}';
const END: char = '\u{3}';
const DURING_INIT: &str = "error during container init: ";

impl Executor for FileExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let prepared = spec.process().as_ref().ok_or_else(|| "the specification has no process".to_owned());
        let prepared =
            prepared.and_then(|process| self.prepare(process)).map_err(|text| ExecutorValidationError::ArgValidationError(mark(&text)))?;
        let _ = self.prepared.set(prepared);
        Ok(())
    }

    /// Nothing: the environment is handed over with the program.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let prepared = self.prepared.get().ok_or(ExecutorError::InvalidArg)?;
        let text = self.execute(prepared, spec.process().as_ref().and_then(Process::no_new_privileges).unwrap_or(false));
        // A process that was started ends as runc's would; nobody awaits its error any more.
        if self.is_init {
            let _ = rustix::io::write(rustix::stdio::stderr(), format!("{text}\n").as_bytes());
            std::process::exit(1);
        }
        Err(ExecutorError::Other(mark(&text)))
    }
}

impl FileExecutor {
    fn prepare(&self, process: &Process) -> Result<Prepared, String> {
        let during_init = |text: String| format!("{DURING_INIT}{text}");
        let failed = |(step, error): credentials::Failed| format!("{DURING_INIT}{step}: {}", text(error));
        let folder = &self.confinement.working_directory;
        if self.is_init {
            environment::make_folder(folder).map_err(during_init)?;
        }
        if process.user().umask().is_none() {
            umask(Mode::from_bits_truncate(UMASK));
        }
        credentials::own_streams(process.user()).map_err(failed)?;
        credentials::set_groups(process.user()).map_err(failed)?;
        environment::enter(folder).map_err(during_init)?;
        let env = environment::variables(process.env().as_deref().unwrap_or_default(), process.user().uid()).map_err(during_init)?;
        let args = process.args().as_deref().unwrap_or_default();
        let name = args.first().ok_or("the process has no arguments")?;
        let path = env.iter().filter_map(|pair| pair.to_str().ok()).find_map(|pair| pair.strip_prefix("PATH="));
        let found = credentials::with_effective(&self.confinement.capabilities, || program::find(name, path)).map_err(failed)?;
        let program = found.map_err(|program::NotFound(text)| text)?;
        let string = |text: &str| CString::new(text).map_err(|_| format!("{DURING_INIT}{text:?} contains a zero byte"));
        let args = args.iter().map(|arg| string(arg)).collect::<Result<_, _>>()?;
        Ok(Prepared { program: string(&program.to_string_lossy())?, args, env })
    }

    /// Returns only what went wrong.
    fn execute(&self, prepared: &Prepared, no_new_privileges: bool) -> String {
        let limited = || -> Result<(), credentials::Failed> {
            let masks = &self.confinement.capabilities;
            credentials::bound(masks)?;
            // Without no_new_privileges this takes CAP_SYS_ADMIN; with it, as little as possible comes after it.
            if !no_new_privileges {
                self.load_filter()?;
            }
            credentials::limit(masks)?;
            if no_new_privileges {
                self.load_filter()?;
            }
            Ok(())
        };
        if let Err((step, error)) = limited() {
            return format!("{DURING_INIT}{step}: {}", text(error));
        }
        match nix::unistd::execve(&prepared.program, &prepared.args, &prepared.env) {
            Ok(never) => match never {},
            Err(error) => format!("exec {}: {}", prepared.program.to_string_lossy(), text(error)),
        }
    }

    fn load_filter(&self) -> Result<(), credentials::Failed> {
        let Some(filter) = &self.filter else { return Ok(()) };
        (self.load)(&filter.program, filter.flags).map_err(|error| ("loading the seccomp filter", error))
    }
}

/// Marks a text as ours.
fn mark(text: &str) -> String {
    format!("{BEGIN}{text}{END}")
}

/// The text that was marked, from whatever was put around it.
pub(super) fn marked(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(BEGIN)?;
    rest.split_once(END).map(|(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_texts_are_found_in_those_of_libcontainer() {
        let text = format!("failed: error in executing process : {}\0\0", mark("exec: \"x\": permission denied"));
        assert_eq!(marked(&text), Some("exec: \"x\": permission denied"));
        assert_eq!(marked("failed to prepare rootfs"), None);
    }
}
