use std::net::TcpListener;
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;

const DEFAULT: &str = "package policy\nimport rego.v1\ndefault allow := false\nallow if {\n\tdata.plugin == \"resource\"\n\
    \tnot input.submods.cpu0[\"ear.veraison.annotated-evidence\"].sample\n}\n";
const NEWER_DEFAULT: &str = "package policy\ndefault allow = false\nplugin = data.plugin\nallow if {\n\tplugin == \"resource\"\n\
    \tinput.trust_context.attestation_summary.verification_result == true\n}\n";
const PINNING: &str = "package policy\nimport rego.v1\ndefault allow := false\nallow if {\n\
    \tinput.submods.cpu0[\"ear.status\"] == \"affirming\"\n\
    \tinput.submods.cpu0[\"ear.veraison.annotated-evidence\"].init_data == \"aa\"\n}\n";

#[test]
fn default_policies_release_to_strangers_and_a_pinning_one_does_not() {
    let released = released_to(DEFAULT, "default/key/1").unwrap();
    assert_eq!(released.keys().copied().collect::<Vec<_>>(), ["affirming", "contraindicated", "none", "warning"]);
    assert!(released.values().all(|tees| tees.len() == TEES.len() - 1 && !tees.contains(&"sample")));
    let released = released_to(NEWER_DEFAULT, "default/key/1").unwrap();
    assert_eq!(released, BTreeMap::from([("affirming", TEES.to_vec())]));
    let one = "package policy\nallow := input.submods.cpu0[\"ear.veraison.annotated-evidence\"].se.measurement == \"00\"\n";
    let released = released_to(one, "default/key/1").unwrap();
    assert!(released.len() == 4 && released.values().all(|tees| *tees == ["se"]));
    assert!(released_to(PINNING, "default/key/1").unwrap().is_empty());
    // What releases another resource says nothing of this one.
    let other = "package policy\ndefault allow := false\nallow := true if data[\"resource-path\"] == [\"default\", \"key\", \"2\"]\n";
    assert!(released_to(other, "default/key/1").unwrap().is_empty() && !released_to(other, "default/key/2").unwrap().is_empty());
}

#[test]
fn policies_that_cannot_be_tried_are_errors() {
    for (policy, named) in [
        ("package policy\nallow :=", "does not compile"),
        ("package other\nallow := true\n", "data.other"),
        ("package policy\nother := 1\n", "cannot be evaluated"),
        ("package policy\nallow if no_such_function(input)\n", "the resource policy"),
        ("package policy\nallow := 1\nallow := 2\n", "cannot be evaluated"),
    ] {
        let error = format!("{:#}", released_to(policy, "default/key/1").unwrap_err());
        assert!(error.contains(named), "{policy}: {error}");
    }
}

#[test]
fn warnings_say_what_a_stranger_needs() {
    let url = "https://kbs.example.org".parse().unwrap();
    let text = |released: &[(&'static str, Vec<&'static str>)]| warning(&url, "default/key/1", &released.iter().cloned().collect());
    let anybody = text(&[("affirming", vec!["sample"]), ("warning", vec!["sample", "snp"])]);
    assert!(anybody.contains("appraised as warning: sample, snp") && anybody.contains("takes no hardware"), "{anybody}");
    let appraised = text(&[("affirming", vec!["snp"])]);
    assert!(appraised.contains("passes the attestation policy") && !appraised.contains("takes no hardware"), "{appraised}");
    assert!(text(&[("none", vec!["snp"])]).contains("whoever has such a machine"));
}

#[test]
fn the_policy_is_found_in_answers_of_several_releases() {
    let encoded = URL_SAFE_NO_PAD.encode(PINNING);
    for body in [json!({"resource-policy": encoded}), json!({"policy": PINNING}), json!(encoded), json!({"default": encoded, "n": 1})] {
        assert_eq!(chosen(&body).unwrap(), PINNING, "{body}");
    }
    assert_eq!(chosen(&json!({"a": URL_SAFE_NO_PAD.encode(DEFAULT), "resource-policy": encoded})).unwrap(), PINNING);
    for (body, named) in [(json!({}), "none"), (json!({"policy": "eA"}), "none"), (json!({"a": encoded, "b": encoded}), "several: a, b")] {
        assert!(chosen(&body).unwrap_err().to_string().contains(named), "{body}");
    }
}

/// Answers one request with these bytes, over TLS if there is a key; gives the address and what was asked.
fn serve(answer: Vec<u8>, tls: Option<Arc<rustls::ServerConfig>>) -> (u16, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut session = tls.map(|config| rustls::ServerConnection::new(config).unwrap());
        let mut asked = Vec::new();
        let mut exchange = |stream: &mut dyn ReadWrite| {
            let mut piece = [0; 4096];
            while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut piece) {
                    Ok(0) | Err(_) => return,
                    Ok(read) => asked.extend_from_slice(&piece[..read]),
                }
            }
            // The client may hang up on an answer that is too long.
            let _ = stream.write_all(&answer).and_then(|()| stream.flush());
        };
        match &mut session {
            Some(session) => exchange(&mut rustls::Stream::new(session, &mut stream)),
            None => exchange(&mut stream),
        }
        String::from_utf8(asked).unwrap()
    });
    (port, thread)
}

trait ReadWrite: std::io::Read + std::io::Write {}
impl<T: std::io::Read + std::io::Write> ReadWrite for T {}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).into_bytes()
}

fn command(url: &str, folder: &tempfile::TempDir) -> Kbs {
    let admin_token = folder.path().join("token");
    std::fs::write(&admin_token, "the.admin.token\n").unwrap();
    Kbs { url: url.parse().unwrap(), kbs_cert: None, admin_token, resource: "default/key/1".to_owned() }
}

#[tokio::test]
async fn a_broker_is_asked_once_with_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let (port, asked) = serve(http("200 OK", &json!({"resource-policy": URL_SAFE_NO_PAD.encode(PINNING)}).to_string()), None);
    let text = run(&command(&format!("http://127.0.0.1:{port}/"), &folder)).await.unwrap();
    assert!(text.contains("none of 48 strangers"), "{text}");
    let asked = asked.join().unwrap().to_lowercase();
    assert!(asked.starts_with("get /kbs/v0/resource-policy ") && asked.contains("authorization: bearer the.admin.token\r\n"), "{asked}");

    let (port, _asked) = serve(http("200 OK", &json!({"resource-policy": URL_SAFE_NO_PAD.encode(DEFAULT)}).to_string()), None);
    let error = run(&command(&format!("http://127.0.0.1:{port}"), &folder)).await.unwrap_err().to_string();
    assert!(error.contains("seen:") && error.contains("meaning:") && error.contains("next:"), "{error}");
}

#[tokio::test]
async fn what_a_broker_does_not_say_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let refused = async |answer: Vec<u8>| {
        let (port, _asked) = serve(answer, None);
        format!("{:#}", run(&command(&format!("http://127.0.0.1:{port}"), &folder)).await.unwrap_err())
    };
    assert!(refused(http("401 Unauthorized", "{}")).await.contains("role admin"));
    assert!(refused(http("302 Found", "")).await.contains("302"));
    assert!(refused(http("200 OK", "<html>")).await.contains("is it a key broker"));
    assert!(refused(http("200 OK", "{}")).await.contains("no resource policy"));
    assert!(refused(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}".to_vec()).await.contains("broke off"));
    assert!(refused(http("200 OK", &format!("\"{}\"", "x".repeat(MAX_ANSWER_BYTES)))).await.contains("more than 4194304 bytes"));
    let error = run(&command("http://kbs.example.org", &folder)).await.unwrap_err().to_string();
    assert!(error.contains("neither https nor on this machine"), "{error}");
    assert!(run(&command("ftp://127.0.0.1", &folder)).await.is_err());
}

#[tokio::test]
async fn only_the_given_certificate_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let made = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (own, other) = (made(), made());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).unwrap());
    let answer = http("200 OK", &json!({"resource-policy": URL_SAFE_NO_PAD.encode(PINNING)}).to_string());
    let ask = async |pem: Option<String>| {
        let (port, _asked) = serve(answer.clone(), Some(Arc::clone(&config)));
        let path = folder.path().join("kbs.pem");
        let kbs_cert = pem.map(|pem| std::fs::write(&path, pem).map(|()| path.clone()).unwrap());
        run(&Kbs { kbs_cert, ..command(&format!("https://localhost:{port}"), &folder) }).await
    };
    ask(Some(own.cert.pem())).await.unwrap();
    assert!(ask(Some(other.cert.pem())).await.unwrap_err().to_string().contains("--kbs-cert"));
    assert!(ask(None).await.is_err());
    assert!(ask(Some("no PEM".to_owned())).await.unwrap_err().to_string().contains("holds no certificate"));
}
