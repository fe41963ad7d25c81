//! Debian's docker-registry, and a client that pushes test images to it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::image::digest;
use crate::{Image, Netns, Process, eventually};

/// A running registry inside a node's namespace.
pub struct Registry {
    process: Process,
    address: SocketAddr,
    folder: PathBuf,
}

impl Registry {
    /// Starts it on all addresses of the namespace, which nothing outside reaches.
    pub fn start(node: &Netns, folder: &Path) -> Result<Self> {
        let storage = folder.join("registry");
        std::fs::create_dir_all(&storage)?;
        let port = 5000;
        let config = folder.join("registry.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{ level: warn }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\nhttp: {{ addr: \"0.0.0.0:{port}\" }}\n",
                storage.display()
            ),
        )?;
        let mut process = Process::start("registry", folder, node.command("docker-registry").arg("serve").arg(&config))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        eventually("the registry answers", Duration::from_secs(20), || {
            process.check_alive()?;
            let answer = node.http_get(address, "/v2/")?;
            if answer.contains("200 OK") { Ok(()) } else { bail!("{answer}") }
        })?;
        Ok(Self { process, address, folder: storage })
    }

    /// Its storage, for tests that damage it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its port in the node's namespace.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Fails when it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        self.process.check_alive()
    }

    /// Pushes an image as `name:tag` and gives the manifest's digest.
    pub fn push(&self, node: &Netns, name: &str, tag: &str, image: &Image) -> Result<String> {
        let config = image.config();
        self.put_blob(node, name, &config)?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            self.put_blob(node, name, &layer.bytes)?;
            let mut descriptor = json!({ "mediaType": layer.media_type, "digest": layer.digest(), "size": layer.bytes.len() });
            if !layer.annotations.is_empty() {
                descriptor["annotations"] = json!(layer.annotations);
            }
            layers.push(descriptor);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len() },
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        let manifest_digest = digest(&manifest);
        self.request(node, "PUT", &format!("/v2/{name}/manifests/{tag}"), "application/vnd.oci.image.manifest.v1+json", manifest)?;
        Ok(manifest_digest)
    }

    /// Pushes a signature of a manifest, where cosign puts it: the layer's content and its annotations.
    pub fn push_signature(&self, node: &Netns, name: &str, manifest_digest: &str, payload: &[u8], signature: &str) -> Result<()> {
        let config = b"{}";
        self.put_blob(node, name, config)?;
        self.put_blob(node, name, payload)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": config.len() },
            "layers": [{
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                "digest": digest(payload),
                "size": payload.len(),
                "annotations": { "dev.cosignproject.cosign/signature": signature },
            }],
        });
        let tag = format!("{}.sig", manifest_digest.replace(':', "-"));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.request(node, "PUT", &format!("/v2/{name}/manifests/{tag}"), kind, manifest.to_string().into_bytes()).map(drop)
    }

    fn put_blob(&self, node: &Netns, name: &str, blob: &[u8]) -> Result<()> {
        let begun = self.request(node, "POST", &format!("/v2/{name}/blobs/uploads/"), "application/octet-stream", Vec::new())?;
        let location = begun
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case("location")))
            .map(|(_, value)| value.trim().to_owned())
            .with_context(|| format!("no Location in {begun}"))?;
        let path = location.find("/v2/").map_or(location.as_str(), |at| &location[at..]);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={}", digest(blob));
        self.request(node, "PUT", &path, "application/octet-stream", blob.to_vec()).map(|_| ())
    }

    fn request(&self, node: &Netns, method: &str, path: &str, media_type: &str, body: Vec<u8>) -> Result<String> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let address = self.address;
        let answer = node.run(move || -> Result<String> {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.write_all(head.as_bytes())?;
            stream.write_all(&body)?;
            let mut answer = Vec::new();
            stream.take(1 << 20).read_to_end(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        })??;
        if answer.starts_with("HTTP/1.1 2") {
            Ok(answer)
        } else {
            bail!("{method} {path}: {}", answer.lines().next().unwrap_or("no answer"))
        }
    }
}
