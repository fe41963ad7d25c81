//! A registry, skopeo and cosign of Debian trixie, our own program, and a guest's store, all in one temporary folder.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peerpods_image::{Digest, ImagePolicy, LayerName, Lookaside, PullError, PullPolicy, Registries};
use serde_json::{Value, json};

use super::common::image::zstd_of;
use super::common::{Image, Layer, store};

/// Set by `cargo xtask test`, and printed by `cargo xtask tools`.
const TRIXIE: &str = "PEERPODS_TRIXIE";
const REGISTRY: &str = "/usr/bin/docker-registry";
const PEERPODCTL: &str = env!("CARGO_BIN_EXE_peerpodctl");
/// The configuration of key providers, once there is one.
const OCICRYPT: &str = "ocicrypt.json";

pub struct World {
    folder: tempfile::TempDir,
    tools: PathBuf,
    registry: Process,
}

/// A program that runs until it is dropped, and the address that it printed.
pub struct Process {
    child: Child,
    pub address: String,
}

/// What a program printed, and whether it succeeded.
pub struct Done {
    line: String,
    is_success: bool,
    pub stdout: String,
    pub text: String,
}

impl World {
    /// `None` where the programs of others are not to be had; says so.
    pub fn new() -> Option<Self> {
        let Some(tools) = std::env::var_os(TRIXIE).map(PathBuf::from) else {
            eprintln!("not checked: {TRIXIE} is not set; `cargo xtask tools` unpacks skopeo and cosign and prints it");
            return None;
        };
        for (program, package) in [(REGISTRY, "docker-registry"), ("/usr/bin/gpg", "gpg"), ("/usr/bin/gpg-agent", "gpg-agent")] {
            if !Path::new(program).exists() {
                eprintln!("not checked: {program} is not installed (Debian package {package})");
                return None;
            }
        }
        print!("{}", fs::read_to_string(tools.join("packages")).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(folder.path());
        Some(Self { folder, tools, registry })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file; gives its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// `HOST:PORT/team/app`.
    pub fn repository(&self) -> String {
        format!("{}/team/app", self.registry.address)
    }

    pub fn reference(&self, tag: &str) -> String {
        format!("{}:{tag}", self.repository())
    }

    /// skopeo that lets every image through.
    pub fn skopeo<I: AsRef<str>>(&self, args: &[I]) -> Done {
        self.run(self.tool("skopeo").arg("--insecure-policy").arg("--registries.d").arg(self.path("registries.d")).args(words(args)))
    }

    /// skopeo that holds images against a policy.json.
    pub fn skopeo_under<I: AsRef<str>>(&self, policy: &Path, args: &[I]) -> Done {
        let mut command = self.tool("skopeo");
        command.arg("--policy").arg(policy).arg("--registries.d").arg(self.path("registries.d"));
        self.run(command.args(words(args)))
    }

    pub fn cosign<I: AsRef<str>>(&self, args: &[I]) -> Done {
        self.run(self.tool("cosign").args(words(args)))
    }

    pub fn peerpodctl<I: AsRef<str>>(&self, args: &[I]) -> Done {
        self.run(Command::new(PEERPODCTL).current_dir(&self.folder).args(words(args)))
    }

    pub fn gpg<I: AsRef<str>>(&self, args: &[I]) -> Done {
        fs::create_dir_all(self.gpg_home()).unwrap();
        fs::set_permissions(self.gpg_home(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let gpg = ["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""];
        self.run(Command::new("/usr/bin/gpg").env("GNUPGHOME", self.gpg_home()).args(gpg).args(words(args)))
    }

    fn gpg_home(&self) -> PathBuf {
        self.path("gnupg")
    }

    /// One of trixie's tools, which sees nothing of this machine's user.
    fn tool(&self, name: &str) -> Command {
        fs::create_dir_all(self.path("registries.d")).unwrap();
        let mut command = Command::new(self.tools.join("bin").join(name));
        command.current_dir(&self.folder).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.folder.path()).env("TMPDIR", self.folder.path()).env("GNUPGHOME", self.gpg_home());
        command.env("COSIGN_PASSWORD", "");
        if self.path(OCICRYPT).exists() {
            command.env("OCICRYPT_KEYPROVIDER_CONFIG", self.path(OCICRYPT));
        }
        command
    }

    fn run(&self, command: &mut Command) -> Done {
        let line = format!("{command:?}");
        let out = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{line}: {error}"));
        let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
        let text = format!("{stdout}{}", String::from_utf8_lossy(&out.stderr));
        Done { line, is_success: out.status.success(), stdout, text }
    }

    /// ocicrypt runs our program for each key.
    pub fn provide_by_command(&self, keys: &Path) {
        let command = json!({"path": PEERPODCTL, "args": ["keyprovider", "--once", "--keys", keys]});
        self.file(OCICRYPT, json!({"key-providers": {"attestation-agent": {"cmd": command}}}).to_string());
    }

    /// ocicrypt asks our program, which serves until the answer is dropped.
    pub fn provide_by_grpc(&self, keys: &Path) -> Process {
        let mut command = Command::new(PEERPODCTL);
        command.args(["keyprovider", "--listen", "127.0.0.1:0", "--keys"]).arg(keys).stdout(Stdio::piped());
        let provider = Process::start(&mut command, |child| Box::new(child.stdout.take().unwrap()));
        self.file(OCICRYPT, json!({"key-providers": {"attestation-agent": {"grpc": provider.address}}}).to_string());
        provider
    }

    /// Pushes an OCI layout's image as it is.
    pub fn push(&self, layout: &str, tag: &str) {
        let to = format!("docker://{}", self.reference(tag));
        self.skopeo(&["copy", "--preserve-digests", "--dest-tls-verify=false", &format!("oci:{layout}:1"), &to]).succeeds();
    }

    /// The manifest that the registry has.
    pub fn manifest(&self, tag: &str) -> Value {
        let raw = self.skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{}", self.reference(tag))]).succeeds();
        serde_json::from_str(&raw.stdout).unwrap()
    }

    pub fn policy(&self) -> PullPolicy {
        PullPolicy { registries: Registries::insecure(&self.registry.address), ..PullPolicy::default() }
    }

    /// Everything needs this.
    pub fn requiring(&self, requirement: &Value) -> PullPolicy {
        let policy = json!({"default": [requirement]}).to_string();
        PullPolicy { image_policy: ImagePolicy::parse(policy.as_bytes()).unwrap(), ..self.policy() }
    }

    /// Pulls into a store of its own, as a guest does; gives what is in the file `content` of each layer.
    pub async fn pull(&self, tag: &str, policy: &PullPolicy) -> Result<Vec<Vec<u8>>, PullError> {
        let folder = tempfile::tempdir_in(&self.folder).unwrap();
        let pulled = store(folder.path()).pull(&self.reference(tag), policy, None).await?;
        let content = |layer: &LayerName| {
            let layer = layer.as_str().trim_start_matches("sha256:");
            fs::read(folder.path().join("store/layers").join(layer).join("content")).unwrap()
        };
        Ok(pulled.layers.iter().map(content).collect())
    }
}

fn words<I: AsRef<str>>(args: &[I]) -> impl Iterator<Item = &str> {
    args.iter().map(AsRef::as_ref)
}

fn registry(folder: &Path) -> Process {
    let config = folder.join("registry.yml");
    let storage = format!("storage:\n  filesystem: {{ rootdirectory: {} }}\n", folder.join("registry").display());
    let text = format!("version: 0.1\nlog: {{ level: info, formatter: json }}\n{storage}http: {{ addr: \"127.0.0.1:0\" }}\n");
    fs::write(&config, text).unwrap();
    let mut command = Command::new(REGISTRY);
    command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped());
    Process::start(&mut command, |child| Box::new(child.stderr.take().unwrap()))
}

impl Process {
    /// Waits for `listening on ADDRESS`.
    fn start(command: &mut Command, output: impl FnOnce(&mut Child) -> Box<dyn std::io::Read + Send>) -> Self {
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(output(&mut child)).lines();
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("listening on ")?;
            Some(rest.chars().take_while(|c| !matches!(c, '"' | ',')).collect())
        });
        let process = Self { child, address: address.unwrap_or_default() };
        assert!(!process.address.is_empty(), "{command:?} ended");
        // Ends with the program.
        std::thread::spawn(move || lines.for_each(drop));
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // An agent that outlives its folder would go on for some minutes.
        let kill = ["--kill", "gpg-agent"];
        let _ = Command::new("/usr/bin/gpgconf").env("GNUPGHOME", self.gpg_home()).args(kill).stderr(Stdio::null()).status();
    }
}

impl Done {
    #[track_caller]
    pub fn succeeds(self) -> Self {
        assert!(self.is_success, "{}\n{}", self.line, self.text);
        self
    }

    /// Fails, and says this.
    #[track_caller]
    pub fn fails_with(self, named: &str) {
        assert!(!self.is_success && self.text.contains(named), "{}\n{}", self.line, self.text);
    }
}

/// What the layers of [`layout`] hold in their file `content`.
pub fn contents() -> Vec<Vec<u8>> {
    vec![(0..300_000_u32).flat_map(u32::to_le_bytes).collect(), b"the second layer".to_vec(), vec![3; 100_000]]
}

/// An OCI layout of one image under tag 1; its layers are compressed with gzip, not at all, and with zstd. Another
/// note makes another manifest.
pub fn layout(path: &Path, note: &str) {
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| fs::write(blobs.join(Digest::of(bytes).as_str().trim_start_matches("sha256:")), bytes).unwrap();
    let layer = |number: usize| Layer::new().file("content", &contents()[number]);
    let image = Image::of([layer(0).gzip(), layer(1).plain(), zstd_of(&layer(2).tar(), 3)]);
    image.layers.iter().for_each(|layer| put(&layer.bytes));
    put(&image.config());
    let mut manifest = image.manifest_json();
    manifest["annotations"] = json!({"note": note});
    let manifest = manifest.to_string().into_bytes();
    put(&manifest);
    let entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(&manifest), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "1"},
    });
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(path.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
}

/// The files of a folder by HTTP, until the test's process ends.
pub fn serve(folder: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(answer(stream, &folder))));
    address
}

fn answer(mut stream: TcpStream, folder: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    // A request without a body ends with its headers.
    lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
    let path = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    let mut body = Vec::new();
    let status = match fs::File::open(folder.join(path)).and_then(|mut file| file.read_to_end(&mut body)) {
        Ok(_) => "200 OK",
        Err(_) => "404 Not Found",
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(&body)
}

/// A public key of PEM as policies hold it.
pub fn sigstore(pem: impl AsRef<[u8]>) -> Value {
    json!({"type": "sigstoreSigned", "keyData": STANDARD.encode(pem), "signedIdentity": {"type": "matchRepository"}})
}

/// A GPG key ring as policies hold it.
pub fn signed_by(keys: impl AsRef<[u8]>) -> Value {
    json!({"type": "signedBy", "keyType": "GPGKeys", "keyData": STANDARD.encode(keys)})
}

pub fn lookaside(server: SocketAddr) -> Lookaside {
    Lookaside::parse(&format!("default-docker:\n  lookaside: http://{server}\n")).unwrap()
}
