//! `peerpodctl initdata`: makes and reads the document that a pod brings to its VM.

mod document;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use peerpods_image::{ImagePolicy, ImagePolicyError};
use serde_json::json;

pub(crate) use document::{Document, DocumentError, HashAlgorithm};

use crate::input::{self, InputError};

/// Initdata: what a pod brings to its VM. The host sees it, and cannot change it without the key broker noticing.
#[derive(Subcommand)]
pub(crate) enum Initdata {
    /// Make a document from files.
    #[command(after_help = NEW_EXAMPLES)]
    New(New),
    /// What a document says.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(Show),
    /// The digest that the VM measures and key brokers compare.
    #[command(after_help = DIGEST_EXAMPLES)]
    Digest(Digest),
}

const NEW_EXAMPLES: &str = "\
Examples:
  peerpodctl initdata new --kbs-url https://kbs.example.org:8080 --kbs-cert kbs.pem --policy policy.rego > initdata.toml
  peerpodctl initdata new --kbs-url https://kbs.example.org:8080 --image-policy policy.json --policy policy.rego > initdata.toml
  peerpodctl initdata new --aa aa.toml --cdh cdh.toml --algorithm sha384 > initdata.toml
  kubectl annotate --local -f pod.yaml -o yaml \\
    io.katacontainers.config.hypervisor.cc_init_data=\"$(peerpodctl initdata new --policy policy.rego --annotation)\"";

const SHOW_EXAMPLES: &str = "\
Examples:
  peerpodctl initdata show initdata.toml
  kubectl get pod web -o jsonpath='{.metadata.annotations.io\\.katacontainers\\.config\\.hypervisor\\.cc_init_data}' | \\
    peerpodctl initdata show -                what a pod was started with
  peerpodctl initdata show --toml annotation.txt > initdata.toml        byte for byte
  peerpodctl initdata show --annotation initdata.toml                   the other way";

const DIGEST_EXAMPLES: &str = "\
Examples:
  peerpodctl initdata digest initdata.toml
  peerpodctl initdata digest --json initdata.toml     what registers hold, too";

/// Arguments of `initdata new`.
#[derive(Args)]
pub(crate) struct New {
    /// Configuration of the attestation agent: aa.toml.
    #[arg(long, value_name = "FILE")]
    aa: Option<PathBuf>,
    /// Configuration of the confidential data hub: cdh.toml.
    #[arg(long, value_name = "FILE")]
    cdh: Option<PathBuf>,
    /// Agent policy: policy.rego. `peerpodctl policy generate` writes one.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Any other file, under this name; may be given more than once.
    #[arg(long = "file", value_name = "NAME=PATH", value_parser = input::named_path)]
    files: Vec<(String, PathBuf)>,
    /// How the document is hashed. SHA-256 fits every register.
    #[arg(long, value_enum, default_value_t = HashAlgorithm::Sha256)]
    algorithm: HashAlgorithm,
    /// Key broker: makes aa.toml and cdh.toml that use it.
    #[arg(long, value_name = "URL", conflicts_with_all = ["aa", "cdh"])]
    kbs_url: Option<String>,
    /// The key broker's certificate, or that of its authority, PEM.
    #[arg(long, value_name = "FILE", requires = "kbs_url")]
    kbs_cert: Option<PathBuf>,
    /// Which images may run and who must have signed them: a policy.json as containers-policy.json(5) has it, for cdh.toml's
    /// [image] image_security_policy. Every pull in the VM is held to it. With a cdh.toml of your own, put it there.
    #[arg(long, value_name = "FILE", conflicts_with = "cdh")]
    image_policy: Option<PathBuf>,
    /// Print the form of the pod annotation io.katacontainers.config.hypervisor.cc_init_data.
    #[arg(long)]
    annotation: bool,
}

/// Arguments of `initdata show`.
#[derive(Args)]
pub(crate) struct Show {
    /// TOML or the annotation's form; `-` reads standard input.
    file: PathBuf,
    /// JSON for programs.
    #[arg(long)]
    json: bool,
    /// The document itself, byte for byte.
    #[arg(long, conflicts_with = "json")]
    toml: bool,
    /// The annotation's form.
    #[arg(long, conflicts_with_all = ["json", "toml"])]
    annotation: bool,
}

/// Arguments of `initdata digest`.
#[derive(Args)]
pub(crate) struct Digest {
    /// TOML or the annotation's form; `-` reads standard input.
    file: PathBuf,
    /// JSON for programs: algorithm, digest, and what registers hold.
    #[arg(long)]
    json: bool,
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitdataCommandError {
    /// One of the files.
    #[error(transparent)]
    Input(#[from] InputError),
    /// What is in them.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The guest would refuse every pull.
    #[error("{} is no image policy that guests take; next: see containers-policy.json(5)", path.display())]
    ImagePolicy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ImagePolicyError,
    },
    /// Nothing was given.
    #[error("nothing to put in; next: give --kbs-url, --policy or another file")]
    Empty,
    /// Two files of one name.
    #[error("{0} was given twice; next: leave one out")]
    Twice(String),
}

/// Carries the command out; gives what is printed.
pub(crate) fn run(command: &Initdata) -> Result<String, InitdataCommandError> {
    match command {
        Initdata::New(new) => make(new),
        Initdata::Show(show) => {
            let document = read(&show.file)?;
            Ok(match show {
                Show { toml: true, .. } => document.text().to_owned(),
                Show { annotation: true, .. } => document.to_annotation()? + "\n",
                Show { json: true, .. } => format!("{:#}\n", described(&document)),
                Show { .. } => for_people(&document),
            })
        }
        Initdata::Digest(digest) => {
            let document = read(&digest.file)?;
            if !digest.json {
                return Ok(format!("{}\n", hex::encode(document.digest())));
            }
            let mut described = described(&document);
            if let Some(members) = described.as_object_mut() {
                members.retain(|name, _| name != "data" && name != "version");
            }
            Ok(format!("{described:#}\n"))
        }
    }
}

/// Reads a document in either form.
pub(crate) fn read(path: &Path) -> Result<Document, InitdataCommandError> {
    Ok(Document::parse(&input::text(path)?)?)
}

fn make(new: &New) -> Result<String, InitdataCommandError> {
    let mut files = BTreeMap::new();
    let mut put = |name: &str, text: String| match files.insert(name.to_owned(), text) {
        None => Ok(()),
        Some(_) => Err(InitdataCommandError::Twice(name.to_owned())),
    };
    let mut cdh = Vec::new();
    if let Some(url) = &new.kbs_url {
        let certificate = new.kbs_cert.as_deref().map(input::text).transpose()?;
        put("aa.toml", document::aa_toml(url, certificate.as_deref()))?;
        cdh.push(document::cdh_toml(url, certificate.as_deref()));
    }
    if let Some(path) = &new.image_policy {
        let json = input::text(path)?;
        ImagePolicy::parse(json.as_bytes()).map_err(|source| InitdataCommandError::ImagePolicy { path: path.clone(), source })?;
        cdh.push(document::image_policy_toml(&json));
    }
    if !cdh.is_empty() {
        put("cdh.toml", cdh.join("\n"))?;
    }
    let named = [("aa.toml", &new.aa), ("cdh.toml", &new.cdh), ("policy.rego", &new.policy)];
    for (name, path) in named.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?))) {
        put(name, input::text(path)?)?;
    }
    for (name, path) in &new.files {
        put(name, input::text(path)?)?;
    }
    if files.is_empty() {
        return Err(InitdataCommandError::Empty);
    }
    let document = Document::new(new.algorithm, files)?;
    Ok(if new.annotation { document.to_annotation()? + "\n" } else { document.text().to_owned() })
}

fn described(document: &Document) -> serde_json::Value {
    let registers = document.registers();
    json!({
        "version": document.initdata().version,
        "algorithm": document.initdata().algorithm.to_string(),
        "digest": hex::encode(document.digest()),
        "registers": {
            "host_data": hex::encode(registers.host_data),
            "mrconfigid": hex::encode(registers.mrconfigid),
            "rtmr_3": registers.rtmr3.map(hex::encode),
            "pcr08": registers.pcr08.map(hex::encode),
        },
        "data": document.initdata().data,
    })
}

fn for_people(document: &Document) -> String {
    let initdata = document.initdata();
    let digest = hex::encode(document.digest());
    let mut text = format!("version {}, {} bytes, {} {digest}\n", initdata.version, document.text().len(), initdata.algorithm);
    for (name, content) in &initdata.data {
        // What comes from elsewhere may not steer the terminal.
        let content: String = content.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        let _ = write!(text, "\n--- {} ---\n{content}", name.escape_debug());
        if !content.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use peerpods_image::PullPolicy;

    use super::*;

    fn new(folder: &Path) -> New {
        std::fs::write(folder.join("policy.rego"), "package agent_policy\n").unwrap();
        New {
            aa: None,
            cdh: None,
            policy: Some(folder.join("policy.rego")),
            files: Vec::new(),
            algorithm: HashAlgorithm::Sha256,
            kbs_url: None,
            kbs_cert: None,
            image_policy: None,
            annotation: false,
        }
    }

    fn show(file: PathBuf, toml: bool, json: bool) -> Initdata {
        Initdata::Show(Show { file, json, toml, annotation: false })
    }

    #[test]
    fn annotation_and_document_are_two_forms_of_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let made = run(&Initdata::New(new(folder.path()))).unwrap();
        assert_eq!(made, "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"policy.rego\" = '''\npackage agent_policy\n'''\n");
        let annotation = run(&Initdata::New(New { annotation: true, ..new(folder.path()) })).unwrap();
        let (toml, short) = (folder.path().join("i.toml"), folder.path().join("i.txt"));
        std::fs::write(&toml, &made).unwrap();
        std::fs::write(&short, annotation).unwrap();
        assert_eq!(run(&show(short.clone(), true, false)).unwrap(), made);
        let digest = |file: PathBuf| run(&Initdata::Digest(Digest { file, json: false })).unwrap();
        assert_eq!(digest(toml.clone()), digest(short));
        let json: serde_json::Value = serde_json::from_str(&run(&Initdata::Digest(Digest { file: toml, json: true })).unwrap()).unwrap();
        assert_eq!(json["registers"]["host_data"], json["digest"]);
        assert_eq!(json["algorithm"], "sha256");
        assert!(json.get("data").is_none());
    }

    #[test]
    fn key_broker_is_configured_for_both_agents() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = folder.path().join("kbs.pem");
        std::fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n").unwrap();
        let made =
            New { kbs_url: Some("https://kbs.example.org".to_owned()), kbs_cert: Some(certificate), policy: None, ..new(folder.path()) };
        let document = Document::parse(&run(&Initdata::New(made)).unwrap()).unwrap();
        let aa: toml::Table = document.initdata().data["aa.toml"].parse().unwrap();
        let cdh: toml::Table = document.initdata().data["cdh.toml"].parse().unwrap();
        assert_eq!(aa["token_configs"]["kbs"]["url"].as_str(), Some("https://kbs.example.org"));
        assert_eq!(aa["token_configs"]["kbs"]["cert"].as_str(), cdh["kbc"]["kbs_cert"].as_str());
        assert_eq!((cdh["kbc"]["name"].as_str(), cdh["kbc"]["url"].as_str()), (Some("cc_kbc"), Some("https://kbs.example.org")));
    }

    #[test]
    fn image_policy_is_where_the_guest_looks_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.json");
        let json = "{\n  \"default\": [{\"type\": \"reject\"}],\n  \"transports\": {\"docker\": {\"registry.example.org\": [{\"type\": \
                    \"sigstoreSigned\", \"keyPath\": \"kbs:///default/cosign/key\"}]}}\n}\n";
        let cdh = |json: &str, kbs_url: Option<&str>| {
            std::fs::write(&file, json).unwrap();
            let made = New { image_policy: Some(file.clone()), kbs_url: kbs_url.map(str::to_owned), policy: None, ..new(folder.path()) };
            let document = Document::parse(&run(&Initdata::New(made))?)?;
            Ok::<_, InitdataCommandError>(document.initdata().data["cdh.toml"].clone())
        };
        for url in [None, Some("https://kbs.example.org")] {
            let cdh = cdh(json, url).unwrap();
            let expected = ImagePolicy::parse(json.as_bytes()).unwrap();
            let found = PullPolicy::from_cdh_toml(&cdh).unwrap().image_policy;
            assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{cdh}");
            let table: toml::Table = cdh.parse().unwrap();
            assert_eq!(table["image"]["image_security_policy"].as_str(), Some(json));
            assert_eq!(table.get("kbc").map(|kbc| kbc["url"].as_str()), url.map(Some));
        }
        let error = cdh("{}", None).unwrap_err();
        assert!(matches!(error, InitdataCommandError::ImagePolicy { .. }), "{error}");
    }

    #[test]
    fn shown_documents_cannot_steer_the_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("i.toml");
        let files = BTreeMap::from([("a".to_owned(), "x\u{1b}[2Jy".to_owned())]);
        std::fs::write(&file, Document::new(HashAlgorithm::Sha384, files).unwrap().text()).unwrap();
        let text = run(&show(file.clone(), false, false)).unwrap();
        assert!(text.contains("--- a ---\nx[2Jy\n") && text.contains("sha384"), "{text}");
        assert!(run(&show(file, false, true)).unwrap().contains("\\u001b"));
    }

    #[test]
    fn empty_and_doubled_contents_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let empty = New { policy: None, ..new(folder.path()) };
        assert!(matches!(run(&Initdata::New(empty)), Err(InitdataCommandError::Empty)));
        let twice = New { files: vec![("policy.rego".to_owned(), folder.path().join("policy.rego"))], ..new(folder.path()) };
        assert!(matches!(run(&Initdata::New(twice)), Err(InitdataCommandError::Twice(name)) if name == "policy.rego"));
    }
}
