//! What becomes of containerd's configuration, as text; nothing here reads or writes a file.
//!
//! Everything that we do not add keeps its place, its order and its comments.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, TomlError, Value, value};

/// The name of our snapshotter in containerd.
const SNAPSHOTTER: &str = "peerpods";
/// The plugin that has the runtimes, in files of version 2 and of version 3.
const CRI_OF_VERSION_2: &str = "io.containerd.grpc.v1.cri";
const CRI_OF_VERSION_3: &str = "io.containerd.cri.v1.runtime";
/// The plugin of containerd 2.x that pulls. It honours this table in files of version 2 too, where 1.7 passes over it.
const IMAGES: &str = "io.containerd.cri.v1.images";

/// The grammar of a containerd configuration, as its key `version` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileVersion {
    /// containerd 1.3 to 1.7; 2.x reads it too.
    V2,
    /// containerd 2.x.
    V3,
}

/// What containerd is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The runtime handler.
    pub handler: String,
    /// Where the node daemon serves the snapshotter.
    pub snapshotter_socket: PathBuf,
    /// The shim's own configuration; `None` leaves it to its defaults.
    pub shim_config: Option<PathBuf>,
}

/// One key that was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The keys that lead to it.
    pub path: Vec<String>,
    /// What it was before, as `key = value` or as a table; `None`: it was not there.
    pub before: Option<String>,
    /// It is a table for what we set below, which stays when somebody else has put something there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_parent: bool,
}

/// Why the configuration cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It is not TOML.
    #[error("it is not TOML")]
    Syntax(#[from] TomlError),
    /// containerd 1.7 takes such a file for one of version 1, and 2.x refuses that.
    #[error("it has no `version`, which containerd takes for 1; next: `containerd config migrate` prints one of a newer version")]
    NoVersion,
    /// A version that this release does not know.
    #[error("it has version {0}, this release knows 2 and 3; next: `containerd config migrate` prints one of a newer version")]
    Version(i64),
    /// Something stands where a table is needed.
    #[error("{path} is not a table, as it is in every configuration of containerd")]
    NotATable {
        /// The keys that lead to it.
        path: String,
    },
    /// Somebody else's entry has the name of ours.
    #[error("{path} is there with another content; next: look at it, then use --replace, or --handler with another name")]
    Taken {
        /// The keys that lead to it.
        path: String,
    },
}

/// Adds what is wanted. Entries that differ from it are replaced if they are ours, that is in `known`, or when `replace` says so.
/// A new file gets `new_version`.
///
/// Gives the new text and every key that was set, those of `known` included; doing it again changes nothing.
pub fn add(
    text: &str,
    wanted: &Wanted,
    new_version: FileVersion,
    known: &[Change],
    replace: bool,
) -> Result<(String, Vec<Change>), EditError> {
    let mut document: DocumentMut = text.parse()?;
    let mut changes = known.to_vec();
    if document.as_table().is_empty() {
        let number = match new_version {
            FileVersion::V2 => 2,
            FileVersion::V3 => 3,
        };
        document.insert("version", value(number));
        note(&mut changes, Change { path: vec!["version".to_owned()], before: None, is_parent: false });
    }
    for (path, item) in entries(wanted, version_of(&document)?) {
        let (key, parents) = path.split_last().unwrap_or((&path[0], &[]));
        let table = table_at(&mut document, parents, &mut changes)?;
        let before = table.get(key).filter(|before| !before.is_none()).cloned();
        if before.as_ref().is_some_and(|before| is_same(before, &item)) {
            continue;
        }
        let is_ours = known.iter().any(|change| change.path == path);
        // A switch is set for all runtimes and belongs to nobody.
        if before.is_some() && item.is_table() && !is_ours && !replace {
            return Err(EditError::Taken { path: join(&path) });
        }
        table.insert(key, item);
        note(&mut changes, Change { before: before.map(|before| text_of(key, before)), is_parent: false, path });
    }
    Ok((document.to_string(), changes))
}

/// Takes back what [`add`] set, and tables that are empty then.
pub fn remove(text: &str, changes: &[Change]) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    for change in changes.iter().rev() {
        let Some((key, parents)) = change.path.split_last() else { continue };
        let Some(table) = find_table(document.as_table_mut(), parents) else { continue };
        match &change.before {
            None if change.is_parent && !table.get(key).and_then(Item::as_table_like).is_none_or(TableLike::is_empty) => {}
            None => drop(table.remove(key)),
            Some(before) => {
                if let Some(item) = item_of(key, before)? {
                    table.insert(key, item);
                }
            }
        }
    }
    Ok(document.to_string())
}

/// Every entry with the keys that lead to it.
fn entries(wanted: &Wanted, version: FileVersion) -> Vec<(Vec<String>, Item)> {
    let path = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<String>>();
    let mut proxy = Table::new();
    proxy.insert("type", value("snapshot"));
    proxy.insert("address", value(wanted.snapshotter_socket.display().to_string()));
    let mut runtime = Table::new();
    runtime.insert("runtime_type", value("io.containerd.peerpods.v2"));
    runtime.insert("snapshotter", value(SNAPSHOTTER));
    runtime.insert("privileged_without_host_devices", value(true));
    runtime.insert("pod_annotations", value(Array::from_iter(["io.katacontainers.*", "peerpods.io/*"])));
    if let Some(config) = &wanted.shim_config {
        let mut options = Table::new();
        options.insert("ConfigPath", value(config.display().to_string()));
        runtime.insert("options", Item::Table(options));
    }
    let mut platform = Table::new();
    platform.insert("platform", value("linux/amd64"));
    platform.insert("snapshotter", value(SNAPSHOTTER));
    let cri = match version {
        FileVersion::V2 => CRI_OF_VERSION_2,
        FileVersion::V3 => CRI_OF_VERSION_3,
    };
    vec![
        (path(&["proxy_plugins", SNAPSHOTTER]), Item::Table(proxy)),
        (path(&["plugins", cri, "containerd", "runtimes", &wanted.handler]), Item::Table(runtime)),
        (path(&["plugins", IMAGES, "use_local_image_pull"]), value(true)),
        (path(&["plugins", IMAGES, "runtime_platforms", &wanted.handler]), Item::Table(platform)),
    ]
}

fn version_of(document: &DocumentMut) -> Result<FileVersion, EditError> {
    match document.get("version").and_then(Item::as_integer) {
        None => Err(EditError::NoVersion),
        Some(2) => Ok(FileVersion::V2),
        Some(3) => Ok(FileVersion::V3),
        Some(other) => Err(EditError::Version(other)),
    }
}

/// The table there, made where it is missing, without headers of their own for the tables above.
fn table_at<'a>(document: &'a mut DocumentMut, path: &[String], changes: &mut Vec<Change>) -> Result<&'a mut dyn TableLike, EditError> {
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for (depth, key) in path.iter().enumerate() {
        let item = table.entry(key).or_insert_with(|| {
            note(changes, Change { path: path[..=depth].to_vec(), before: None, is_parent: true });
            let mut made = Table::new();
            made.set_implicit(true);
            Item::Table(made)
        });
        table = item.as_table_like_mut().ok_or_else(|| EditError::NotATable { path: join(&path[..=depth]) })?;
    }
    Ok(table)
}

fn find_table<'a>(root: &'a mut Table, path: &[String]) -> Option<&'a mut dyn TableLike> {
    let mut table: &mut dyn TableLike = root;
    for key in path {
        table = table.get_mut(key)?.as_table_like_mut()?;
    }
    Some(table)
}

/// Notes what was there before the first change of a key.
fn note(changes: &mut Vec<Change>, change: Change) {
    if !changes.iter().any(|known| known.path == change.path) {
        changes.push(change);
    }
}

/// Whether both say the same, however they are written.
fn is_same(one: &Item, other: &Item) -> bool {
    match (plain(one), plain(other)) {
        (Some(one), Some(other)) => one.to_string() == other.to_string(),
        _ => false,
    }
}

/// Without comments, spaces and order.
fn plain(item: &Item) -> Option<Value> {
    let mut plain = match item.clone().into_value().ok()? {
        Value::InlineTable(table) => {
            let mut pairs: Vec<(String, Value)> =
                table.iter().map(|(key, value)| Some((key.to_owned(), plain_value(value)?))).collect::<Option<_>>()?;
            pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
            Value::InlineTable(InlineTable::from_iter(pairs))
        }
        Value::Array(array) => Value::Array(array.iter().map(plain_value).collect::<Option<Array>>()?),
        Value::String(text) => Value::from(text.into_value()),
        Value::Integer(number) => Value::from(number.into_value()),
        Value::Float(number) => Value::from(number.into_value()),
        Value::Boolean(is_true) => Value::from(is_true.into_value()),
        Value::Datetime(time) => Value::from(time.into_value()),
    };
    plain.decor_mut().clear();
    Some(plain)
}

fn plain_value(value: &Value) -> Option<Value> {
    plain(&Item::Value(value.clone()))
}

fn join(path: &[String]) -> String {
    let quoted = |key: &String| if key.contains('.') { format!("{key:?}") } else { key.clone() };
    path.iter().map(quoted).collect::<Vec<_>>().join(".")
}

fn text_of(key: &str, item: Item) -> String {
    let mut document = DocumentMut::new();
    document.insert(key, item);
    document.to_string()
}

fn item_of(key: &str, text: &str) -> Result<Option<Item>, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    Ok(document.remove(key))
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
