//! A registry of one answer per path, on a port of its own, with the faults that tests need.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use super::image::{Image, digest};

/// What is sent for a path.
#[derive(Clone)]
pub enum Body {
    Bytes(Vec<u8>),
    File(PathBuf),
    /// These bytes under a longer `Content-Length`.
    Short(Vec<u8>, usize),
    /// The connection breaks after so many bytes of each answer; ranges are served if asked for.
    Breaking(Vec<u8>, usize),
    /// As [`Body::Breaking`], but a range is answered with everything, or with this `Content-Range`.
    Odd(Vec<u8>, usize, Option<&'static str>),
    /// These answers one after the other, the last one for ever.
    Turns(Vec<Body>),
    /// Half of the bytes, the rest when [`Registry::release`] is called.
    Held(Vec<u8>),
    /// Zeros without end.
    Endless,
    /// A status and headers.
    Refusal(&'static str, Vec<(&'static str, String)>),
    /// Needs this `Authorization`; otherwise 401 with this challenge.
    Guarded {
        authorization: String,
        challenge: String,
        bytes: Vec<u8>,
    },
}

pub struct Registry {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    bodies: Mutex<HashMap<String, Body>>,
    requests: Mutex<Vec<Request>>,
    released: Mutex<bool>,
    changed: Condvar,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub query: String,
    pub range: Option<u64>,
    pub authorization: Option<String>,
}

impl Registry {
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// By TLS, with a certificate of its own for 127.0.0.1, which is given as PEM.
    pub fn start_tls() -> (Self, String) {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        (Self::start_with(Some(Arc::new(config))), certified.cert.pem())
    }

    fn start_with(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<State>::default();
        let shared = state.clone();
        // Ends with the process; a connection ends with its client.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, tls) = (shared.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => state.serve(stream),
                    Some(tls) => state.serve(rustls::StreamOwned::new(rustls::ServerConnection::new(tls).unwrap(), stream)),
                });
            }
        });
        Self { address, state }
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn set(&self, path: &str, body: Body) {
        self.state.bodies.lock().unwrap().insert(path.to_owned(), body);
    }

    pub fn set_blob(&self, name: &str, bytes: &[u8], body: Body) {
        self.set(&format!("/v2/{name}/blobs/{}", digest(bytes)), body);
    }

    pub fn push(&self, name: &str, tag: &str, image: &Image) {
        for bytes in image.layers.iter().map(|layer| layer.bytes.clone()).chain([image.config()]) {
            self.set_blob(name, &bytes, Body::Bytes(bytes.clone()));
        }
        self.push_manifest(name, tag, image.manifest());
    }

    pub fn push_manifest(&self, name: &str, tag: &str, bytes: Vec<u8>) {
        self.set(&format!("/v2/{name}/manifests/{}", digest(&bytes)), Body::Bytes(bytes.clone()));
        self.set(&format!("/v2/{name}/manifests/{tag}"), Body::Bytes(bytes));
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// How often a blob was asked for.
    pub fn fetches(&self, bytes: &[u8]) -> usize {
        let end = format!("/blobs/{}", digest(bytes));
        self.requests().iter().filter(|request| request.path.ends_with(&end)).count()
    }

    /// Waits until a blob has been asked for.
    pub fn wait_for_fetch(&self, bytes: &[u8]) {
        let end = format!("/blobs/{}", digest(bytes));
        let mut requests = self.state.requests.lock().unwrap();
        while !requests.iter().any(|request| request.path.ends_with(&end)) {
            requests = self.state.changed.wait(requests).unwrap();
        }
    }

    /// Lets held bodies go on.
    pub fn release(&self) {
        *self.state.released.lock().unwrap() = true;
        self.state.changed.notify_all();
    }
}

impl State {
    fn serve(&self, stream: impl Read + Write) {
        let mut reader = BufReader::new(stream);
        while let Some(request) = read_request(&mut reader) {
            self.requests.lock().unwrap().push(request.clone());
            self.changed.notify_all();
            let body = self.take(&request.path);
            if self.answer(reader.get_mut(), &request, body).is_none() {
                return;
            }
        }
    }

    fn take(&self, path: &str) -> Option<Body> {
        match self.bodies.lock().unwrap().get_mut(path)? {
            Body::Turns(turns) if turns.len() > 1 => Some(turns.remove(0)),
            Body::Turns(turns) => turns.first().cloned(),
            body => Some(body.clone()),
        }
    }

    /// `None` closes the connection.
    fn answer(&self, stream: &mut impl Write, request: &Request, body: Option<Body>) -> Option<()> {
        match body {
            None => head(stream, "404 Not Found", &[], Some(0)),
            Some(Body::Bytes(bytes)) => {
                head(stream, "200 OK", &[], Some(bytes.len()))?;
                stream.write_all(&bytes).ok()
            }
            Some(Body::File(path)) => {
                let mut file = std::fs::File::open(path).ok()?;
                head(stream, "200 OK", &[], Some(usize::try_from(file.metadata().ok()?.len()).ok()?))?;
                let mut block = vec![0; 64 << 10];
                loop {
                    let read = file.read(&mut block).ok()?;
                    if read == 0 {
                        return Some(());
                    }
                    stream.write_all(&block[..read]).ok()?;
                }
            }
            Some(Body::Turns(_)) => head(stream, "500 Internal Server Error", &[], Some(0)),
            Some(Body::Breaking(bytes, most)) => {
                let first = usize::try_from(request.range.unwrap_or(0)).ok()?;
                let range = format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len());
                match request.range {
                    Some(_) => head(stream, "206 Partial Content", &[("Content-Range", range)], Some(bytes.len() - first))?,
                    None => head(stream, "200 OK", &[], Some(bytes.len()))?,
                }
                stream.write_all(&bytes[first..bytes.len().min(first + most)]).ok()?;
                (first + most >= bytes.len()).then_some(())
            }
            Some(Body::Odd(bytes, most, range)) => {
                let is_resumed = request.range.is_some();
                match range {
                    Some(range) if is_resumed => {
                        head(stream, "206 Partial Content", &[("Content-Range", range.to_owned())], Some(bytes.len()))?;
                    }
                    _ => head(stream, "200 OK", &[], Some(bytes.len()))?,
                }
                let most = if is_resumed { bytes.len() } else { most };
                stream.write_all(&bytes[..most]).ok()?;
                (most == bytes.len()).then_some(())
            }
            Some(Body::Short(bytes, announced)) => {
                head(stream, "200 OK", &[], Some(announced))?;
                stream.write_all(&bytes).ok()?;
                None
            }
            Some(Body::Held(bytes)) => {
                head(stream, "200 OK", &[], Some(bytes.len()))?;
                let (first, rest) = bytes.split_at(bytes.len() / 2);
                stream.write_all(first).ok()?;
                let mut released = self.released.lock().unwrap();
                while !*released {
                    released = self.changed.wait(released).unwrap();
                }
                drop(released);
                stream.write_all(rest).ok()
            }
            Some(Body::Endless) => {
                head(stream, "200 OK", &[], None)?;
                let block = vec![b' '; 64 << 10];
                while stream.write_all(&block).is_ok() {}
                None
            }
            Some(Body::Refusal(status, headers)) => head(stream, status, &headers, Some(0)),
            Some(Body::Guarded { authorization, challenge, bytes }) => {
                if request.authorization.as_deref() != Some(&authorization) {
                    return head(stream, "401 Unauthorized", &[("WWW-Authenticate", challenge)], Some(0));
                }
                head(stream, "200 OK", &[], Some(bytes.len()))?;
                stream.write_all(&bytes).ok()
            }
        }
    }
}

fn head(stream: &mut impl Write, status: &str, headers: &[(&str, String)], length: Option<usize>) -> Option<()> {
    let mut text = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &length.map_or_else(|| "Connection: close\r\n\r\n".to_owned(), |length| format!("Content-Length: {length}\r\n\r\n"));
    stream.write_all(text.as_bytes()).ok()
}

fn read_request(reader: &mut BufReader<impl Read>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let target = line.split(' ').nth(1)?.to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut request = Request { path: path.to_owned(), query: query.to_owned(), range: None, authorization: None };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|read| *read > 0)?;
        match header.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => request.authorization = Some(value.to_owned()),
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                request.range = value.strip_prefix("bytes=").and_then(|value| value.strip_suffix('-')?.parse().ok());
            }
            Some(_) => {}
            None => return Some(request),
        }
    }
}
