//! Kernel modules: exactly those that the image lists, in its order.

use std::fs::File;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use super::{Stop, failed};

const FOLDER: &str = "/modules";

/// Loads what `/modules/order` lists, then frees the memory that the files take in the initrd.
///
/// A line is `required FILE` or `optional FILE`. An optional module may fail: its hardware is another machine's.
pub(super) fn load_all() -> Result<(), Stop> {
    let folder = Path::new(FOLDER);
    let order = std::fs::read_to_string(folder.join("order")).map_err(|e| failed("modules", "order", &e))?;
    for line in order.lines() {
        let (is_required, name) = match line.split_once(' ') {
            Some(("required", name)) => (true, name),
            Some(("optional", name)) => (false, name),
            _ => return Err(failed("modules", "order", &Errno::INVAL.into())),
        };
        let file = File::open(folder.join(name)).map_err(|e| failed("modules", name, &e))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) if is_required => return Err(failed("modules", name, &e.into())),
            Err(_) => {}
        }
    }
    std::fs::remove_dir_all(folder).map_err(|e| failed("modules", "remove", &e))
}
