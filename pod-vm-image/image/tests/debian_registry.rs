//! Against Debian's docker-registry with users and passwords.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use common::{Image, Layer, chain, names, store};
use peerpods_image::{PullError, PullPolicy, Registries, RegistryAuths};

const PROGRAM: &str = "/usr/bin/docker-registry";
/// `hunter2` under bcrypt.
const HTPASSWD: &str = "me:$2b$04$OcT9CuW4iFAZT75jMiOxV.3sZxth/.Hh1s./RXySnFkFIYB8TRDWq\n";

struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(folder: &Path) -> Self {
        let (users, config) = (folder.join("htpasswd"), folder.join("config.yml"));
        std::fs::write(&users, HTPASSWD).unwrap();
        let text = format!(
            "version: 0.1\nlog: {{ level: info, formatter: json }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\nauth:\n  htpasswd: {{ realm: test, path: {} }}\nhttp: {{ addr: \"127.0.0.1:0\" }}\n",
            folder.join("data").display(),
            users.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Command::new(PROGRAM).arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        // `listening on 127.0.0.1:PORT`
        let address = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("listening on ")?.1.chars().take_while(|c| !matches!(c, '"' | ',')).collect()))
            .expect("the registry ended");
        // Ends with the registry.
        std::thread::spawn(move || log.for_each(drop));
        Self { process, address }
    }

    fn request(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> String {
        let pair = base64::engine::general_purpose::STANDARD.encode("me:hunter2");
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Basic {pair}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        )
        .unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
        answer
    }

    fn push(&self, name: &str, tag: &str, image: &Image) {
        for blob in image.layers.iter().map(|layer| layer.bytes.clone()).chain([image.config()]) {
            let begun = self.request("POST", &format!("/v2/{name}/blobs/uploads/"), "application/octet-stream", b"");
            let location = begun.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
            let path = &location[location.find("/v2/").unwrap()..];
            self.request("PUT", &format!("{path}&digest={}", common::image::digest(&blob)), "application/octet-stream", &blob);
        }
        self.request("PUT", &format!("/v2/{name}/manifests/{tag}"), "application/vnd.oci.image.manifest.v1+json", &image.manifest());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn pull_with_a_password_works_and_without_is_explained() {
    if !Path::new(PROGRAM).exists() {
        eprintln!("not checked: {PROGRAM} is not installed (Debian package docker-registry)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(folder.path());
    let image = Image::of([Layer::new().file("a/f", b"1").gzip(), Layer::new().file("b", b"2").plain()]);
    registry.push("team/app", "1", &image);
    let store = store(folder.path());
    let name = format!("{}/team/app:1", registry.address);
    let policy = |password: Option<&str>| {
        let auth = password.map(|password| {
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("me:{password}"));
            let config = serde_json::json!({"auths": {registry.address.clone(): {"auth": pair}}}).to_string();
            RegistryAuths::from_docker_config(config.as_bytes()).unwrap()
        });
        PullPolicy { registries: Registries::insecure(&registry.address), auth: auth.unwrap_or_default(), ..PullPolicy::default() }
    };
    assert!(matches!(store.pull(&name, &policy(None), None).await, Err(PullError::NeedsAuth { .. })));
    assert!(matches!(store.pull(&name, &policy(Some("wrong")), None).await, Err(PullError::AuthRefused { .. })));
    let missing = format!("{}/team/other:1", registry.address);
    assert!(matches!(store.pull(&missing, &policy(Some("hunter2")), None).await, Err(PullError::NotFound { .. })));
    let pulled = store.pull(&name, &policy(Some("hunter2")), None).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let by_digest = format!("{}/team/app@{}", registry.address, pulled.manifest);
    store.pull(&by_digest, &policy(Some("hunter2")), None).await.unwrap();
    assert_eq!(names(&folder.path().join("store/layers")).len(), 2);
}
