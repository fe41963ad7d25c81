//! The contract's cases on a real account, for whoever asks for it: it costs money.
//!
//! `PEERPODS_AWS_ACCOUNT` is a file with the keys of `[provider.aws]`; cases launch the first of its instance types, at most three at once,
//! without a TEE, and delete what they made. Asked for and not usable, this fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{SystemTime, UNIX_EPOCH};

use peerpods_cloud_api::settings::aws::AwsSettings;
use peerpods_cloud_api::{CloudProvider as _, Tee};
use peerpods_cloud_aws::AwsProvider;
use peerpods_cloud_conformance::{CASES, Subject, run};

#[tokio::test(flavor = "multi_thread")]
async fn provider_conforms_on_the_account_that_is_given() {
    let Ok(file) = std::env::var("PEERPODS_AWS_ACCOUNT") else {
        println!("nothing was tested: PEERPODS_AWS_ACCOUNT names no settings of an account");
        return;
    };
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("PEERPODS_AWS_ACCOUNT: {file}: {error}"));
    let settings: AwsSettings = toml::from_str(&text).unwrap_or_else(|error| panic!("PEERPODS_AWS_ACCOUNT: {file}: {error}"));
    let provider = AwsProvider::new(settings.clone()).unwrap();
    provider.verify().await.unwrap_or_else(|error| panic!("the account cannot serve launches: {error}"));
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let instance_type = settings.instance_types[0].clone();
    let subject = Subject {
        open: Box::new(move || std::sync::Arc::new(AwsProvider::new(settings.clone()).unwrap())),
        owner_prefix: format!("conformance/{since}-"),
        instance_type,
        tee: Tee::Sample,
        zone: None,
        largest_batch: 3,
    };
    let outcome = run(&subject, "").await;
    assert!(outcome.failed.is_empty() && outcome.passed == CASES.len(), "{:?}", outcome.failed);
}
