//! `peerpodctl verify kbs`: would a key broker release to anybody?
//!
//! The broker's resource policy is read and evaluated here, with tokens as the broker would issue them to strangers: real evidence of every
//! kind, of an unknown image with unknown initdata, whatever the attestation policy says of it. Trustee's default releases to them. That no
//! stranger gets anything does not show that the right pod does.

mod strangers;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use regorus::utils::limits::ExecutionTimerConfig;
use reqwest::Url;
use serde_json::{Value, json};

use super::read;
use crate::policy;
use strangers::{STATUSES, TEES, token};

/// Read a key broker's resource policy and try it: would it release to anybody's VM?
#[derive(Args)]
#[command(after_help = "\
Examples:
  peerpods-relying-party admin-token --state kbs > token
  peerpodctl verify kbs --url https://kbs.example.org:8080 --kbs-cert kbs/tls-certificate.pem --admin-token token
  peerpodctl verify kbs --url http://127.0.0.1:8080 --admin-token token --resource kbs:///default/key/web

It ends with an error if a stranger would get the resource, and if the policy cannot be read or evaluated.")]
pub(crate) struct Kbs {
    /// The broker: https, or http on this machine.
    #[arg(long)]
    url: Url,
    /// PEM of the certificate that it shows, or of its authority: no other is believed. Without it, the system's authorities are.
    #[arg(long, value_name = "FILE", visible_alias = "certificate")]
    kbs_cert: Option<PathBuf>,
    /// File with a token for administration.
    #[arg(long, value_name = "FILE")]
    admin_token: PathBuf,
    /// A resource to try, such as default/key/1 or kbs:///default/key/1.
    #[arg(long, default_value = "default/key/1", value_name = "REPOSITORY/TYPE/TAG", value_parser = policy::resource)]
    resource: String,
}

/// From the first byte sent to the last one received.
const WITHIN: Duration = Duration::from_secs(20);
/// Longest answer that is read: more than any policy.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// For one evaluation, as in the broker.
const EVALUATION_LIMIT: Duration = Duration::from_secs(5);
/// Steps between two looks at the clock.
const STEPS: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);
/// What brokers call the policy that they release by.
const NAMES: [&str; 2] = ["resource-policy", "policy"];

/// Carries the command out; gives what is printed.
pub(super) async fn run(command: &Kbs) -> Result<String> {
    let policy = resource_policy(command).await?;
    let released = released_to(&policy, &command.resource)?;
    let (url, resource) = (&command.url, &command.resource);
    if released.is_empty() {
        let tried = TEES.len() * STATUSES.len();
        return Ok(format!(
            "seen: the resource policy of {url} releases {resource} to none of {tried} strangers: {} kinds of evidence, each with {}.\n\
             meaning: it asks for more than hardware and a good appraisal. Whether it asks for your image and initdata was not tried.\n\
             next: start the pod; `peerpodctl verify token` shows what the broker says of it.\n",
            TEES.len(),
            STATUSES.join(", "),
        ));
    }
    bail!("{}", warning(url, resource, &released))
}

fn warning(url: &Url, resource: &str, released: &BTreeMap<&str, Vec<&str>>) -> String {
    let mut text = format!("seen: the resource policy of {url} releases {resource} to VMs of an unknown image with unknown initdata:\n");
    for (status, tees) in released {
        text += &format!("  appraised as {status}: {}\n", tees.join(", "));
    }
    text += "meaning: ";
    if released.values().flatten().any(|tee| *tee == "sample") {
        text += "sample evidence takes no hardware: whoever reaches the broker gets the resource. ";
    }
    text += if released.keys().all(|status| *status == "affirming") {
        "whoever passes the attestation policy gets it, with an agent policy and images of their own choice.\n"
    } else {
        "whoever has such a machine gets it, whatever runs there.\n"
    };
    text + "next: set a policy that names image and initdata: `peerpodctl policy generate --help` shows how to make it."
}

async fn resource_policy(command: &Kbs) -> Result<String> {
    let mut address = command.url.clone();
    ensure!(
        address.scheme() == "https" || (address.scheme() == "http" && is_local(&address)),
        "{address} is neither https nor on this machine, and the token that commands the broker would be readable on the way; next: give an \
         https address"
    );
    address.set_path(&format!("{}/kbs/v0/resource-policy", address.path().trim_end_matches('/')));
    // Refused only if there is one already, which then does.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut client = reqwest::Client::builder().timeout(WITHIN).redirect(reqwest::redirect::Policy::none()).no_proxy();
    if let Some(path) = &command.kbs_cert {
        let certificates = reqwest::Certificate::from_pem_bundle(&read(path)?).with_context(|| format!("read {}", path.display()))?;
        ensure!(!certificates.is_empty(), "{} holds no certificate in PEM; next: give the file that guests pin", path.display());
        client = client.tls_certs_only(certificates);
    }
    let admin_token = String::from_utf8(read(&command.admin_token)?).context("the token for administration is not text")?;
    let request = client.build()?.get(address.clone()).bearer_auth(admin_token.trim());
    let next = "next: look whether the address is right and the broker serves, and whether --kbs-cert is its certificate";
    let mut answer = request.send().await.with_context(|| format!("no answer from {address}; {next}"))?;
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.with_context(|| format!("the answer of {address} broke off"))? {
        ensure!(piece.len() <= MAX_ANSWER_BYTES - body.len(), "the answer of {address} has more than {MAX_ANSWER_BYTES} bytes");
        body.extend_from_slice(&piece);
    }
    let status = answer.status();
    ensure!(status.is_success(), "{address} answers {status}; next: give a token that its admin key signed, with the role admin");
    let body: Value = serde_json::from_slice(&body).with_context(|| format!("the answer of {address} is not JSON; is it a key broker?"))?;
    chosen(&body).with_context(|| format!("{address} shows no resource policy that can be tried"))
}

fn is_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The policy in an answer. Releases differ: one text, or texts by name.
fn chosen(body: &Value) -> Result<String> {
    let mut found = BTreeMap::new();
    let mut put = |name: &str, value: &Value| {
        if let Some(policy) = value.as_str().and_then(decoded) {
            found.insert(name.to_owned(), policy);
        }
    };
    match body {
        Value::Object(members) => members.iter().for_each(|(name, value)| put(name, value)),
        value => put(NAMES[0], value),
    }
    let named = NAMES.iter().find_map(|name| found.remove(*name));
    match (named, found.len()) {
        (Some(policy), _) => Ok(policy),
        (None, 1) => found.into_values().next().context("one"),
        (None, 0) => bail!("there is none in its answer"),
        (None, _) => bail!("there are several: {}", found.into_keys().collect::<Vec<_>>().join(", ")),
    }
}

/// Rego as it is, or in base64url.
fn decoded(text: &str) -> Option<String> {
    let is_rego = |text: &str| text.lines().any(|line| line.trim_start().starts_with("package "));
    let plain = Some(text.to_owned()).filter(|text| is_rego(text));
    let decode = || String::from_utf8(URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?).ok().filter(|text| is_rego(text));
    plain.or_else(decode)
}

/// Kinds of evidence that get the resource, by what the attestation policy said of it.
fn released_to(policy: &str, resource: &str) -> Result<BTreeMap<&'static str, Vec<&'static str>>> {
    let path: Vec<&str> = resource.split('/').collect();
    let data = json!({"plugin": "resource", "resource-path": path, "query": {}});
    let mut engine = regorus::Engine::new();
    engine.set_execution_timer_config(ExecutionTimerConfig { limit: EVALUATION_LIMIT, check_interval: STEPS });
    let package =
        engine.add_policy("resource-policy.rego".to_owned(), policy.to_owned()).context("the resource policy does not compile")?;
    ensure!(package == "data.policy", "the resource policy is of {package} and not of data.policy, so the broker finds no rule in it");
    engine.add_data(regorus::Value::from(data))?;
    let mut released: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tee, status) in STATUSES.iter().flat_map(|status| TEES.iter().map(move |tee| (*tee, *status))) {
        let mut engine = engine.clone();
        engine.set_input(regorus::Value::from(token(tee, status)));
        let failed =
            || format!("the resource policy cannot be evaluated for {tee} evidence appraised as {status}, so nothing is known of it");
        if engine.eval_rule("data.policy.allow".to_owned()).with_context(failed)? == regorus::Value::from(true) {
            released.entry(status).or_default().push(tee);
        }
    }
    Ok(released)
}

#[cfg(test)]
mod tests;
