//! Sending a tree with the agent's `CopyFile`.

use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use peerpods_protos::agent::CopyFileRequest;
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use ttrpc::context::with_duration;

use super::tree::{self, Entry, TreeError, What};
use crate::plan::Copy;

/// Why a file did not get into the pod VM.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It cannot be read on the node.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Its name is not UTF-8, which the agent's protocol needs.
    #[error("the name {0} is not UTF-8")]
    Name(String),
    /// The agent did not take it.
    #[error("the agent does not take {path}")]
    Send {
        /// In the guest.
        path: String,
        /// What it says.
        #[source]
        source: ttrpc::Error,
    },
}

/// A frame of ttrpc holds 4 MiB.
const PIECE_BYTES: usize = 1 << 20;
const CALL: Duration = Duration::from_secs(60);

/// Copies everything, in order. What was sent before an error stays in the guest.
pub async fn copy(agent: &AgentServiceClient, copies: &[Copy]) -> Result<(), CopyError> {
    for one in copies {
        for entry in tree::read(&one.source)? {
            for request in requests(&one.target, entry)? {
                let sent = agent.copy_file(with_duration(CALL), &request).await;
                sent.map_err(|source| CopyError::Send { path: request.path.clone(), source })?;
            }
        }
    }
    Ok(())
}

fn requests(target: &str, entry: Entry) -> Result<Vec<CopyFileRequest>, CopyError> {
    let mut path = target.to_owned();
    if !entry.path.as_os_str().is_empty() {
        let below = std::str::from_utf8(entry.path.as_os_str().as_bytes());
        path.push('/');
        path.push_str(below.map_err(|_| CopyError::Name(entry.path.display().to_string()))?);
    }
    let is_file = matches!(entry.what, What::File(_));
    let mut first = CopyFileRequest::new();
    first.path = path;
    first.file_mode = entry.mode;
    first.dir_mode = 0o755;
    first.uid = i32::try_from(entry.uid).unwrap_or(0);
    first.gid = i32::try_from(entry.gid).unwrap_or(0);
    let data = entry.what.into_data();
    first.file_size = if is_file { i64::try_from(data.len()).unwrap_or(i64::MAX) } else { 0 };
    if data.len() <= PIECE_BYTES {
        first.data = data;
        return Ok(vec![first]);
    }
    let pieces = data.chunks(PIECE_BYTES).enumerate();
    Ok(pieces
        .map(|(number, piece)| {
            let mut request = first.clone();
            request.offset = i64::try_from(number * PIECE_BYTES).unwrap_or(i64::MAX);
            request.data = piece.to_vec();
            request
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: usize) -> Entry {
        Entry { path: "a/b".into(), mode: 0o100_640, uid: 1, gid: 2, what: What::File(vec![7; bytes]) }
    }

    #[test]
    fn a_file_is_cut_into_pieces_that_say_its_whole_size() {
        let sent = requests("/t", file(PIECE_BYTES * 2 + 1)).unwrap();
        let shape: Vec<(i64, usize, i64)> = sent.iter().map(|piece| (piece.offset, piece.data.len(), piece.file_size)).collect();
        let size = 2 * PIECE_BYTES as i64 + 1;
        assert_eq!(shape, [(0, PIECE_BYTES, size), (PIECE_BYTES as i64, PIECE_BYTES, size), (2 * PIECE_BYTES as i64, 1, size)]);
        assert!(sent.iter().all(|piece| piece.path == "/t/a/b" && piece.file_mode == 0o100_640 && (piece.uid, piece.gid) == (1, 2)));
    }

    #[test]
    fn an_empty_file_is_sent_too() {
        let sent = requests("/t", file(0)).unwrap();
        assert_eq!((sent.len(), sent[0].file_size, sent[0].data.len()), (1, 0, 0));
    }
}
