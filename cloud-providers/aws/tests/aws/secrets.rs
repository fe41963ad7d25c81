//! Credentials, session tokens and user data are in no error, no debug output, no log line and no dump of the mock cloud.

use std::io::Write;
use std::sync::{Arc, Mutex};

use peerpods_cloud_api::{CloudProvider as _, LaunchRequest, OwnerTag, ProviderError};
use peerpods_cloud_aws::AwsProvider;
use peerpods_mock_cloud::Options;
use peerpods_mock_cloud::faults::{Fault, Kind};
use tracing_subscriber::fmt::MakeWriter;

use crate::world::{SECRET, SESSION_TOKEN, World, request};

const USER_DATA: &str = "canary-user-data-5d20";
/// The same in base64, as the wire has it.
const USER_DATA_BASE64: &str = "Y2FuYXJ5LXVzZXItZGF0YS01ZDIw";

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;
    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn nothing_secret_is_said_or_written() {
    let lines = Lines::default();
    // All that the SDK ever says, too: an operator may ask for it.
    let filter = tracing_subscriber::EnvFilter::new("trace");
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let world = World::start(Options::default()).await;
    let provider = world.provider_with(|_| {});
    let mut said = vec![format!("{provider:?}"), format!("{:?}", world.settings()), toml::to_string(&world.settings()).unwrap()];
    let mut hear = |error: Result<(), ProviderError>| {
        said.push(format!("{:?} {}", error, error.clone().err().map(|e| e.to_string()).unwrap_or_default()))
    };
    provider.launch(&request("a")).await.unwrap();
    hear(provider.launch(&LaunchRequest { user_data: USER_DATA.repeat(60).into_bytes(), ..request("b") }).await.map(drop));
    hear(provider.launch(&LaunchRequest { user_data: b"other".to_vec(), ..request("a") }).await.map(drop));
    for kind in [Kind::FailAfter, Kind::CloseAfter, Kind::Refuse { code: "UnauthorizedOperation".to_owned(), status: 403 }] {
        world.cloud.add_fault(Fault { action: "RunInstances".to_owned(), kind, times: 1 });
        hear(provider.launch(&request("c")).await.map(drop));
    }
    let unknown = world.provider_with(|settings| settings.access_key_id = Some("AKIANOBODY".to_owned()));
    hear(unknown.launch(&request("d")).await.map(drop));
    let nowhere: AwsProvider = world.provider_with(|settings| settings.endpoint = Some("http://127.0.0.1:1".to_owned()));
    hear(nowhere.list(&OwnerTag::new("cluster-a").unwrap()).await.map(drop));

    said.push(serde_json::to_string(&world.cloud.calls()).unwrap());
    said.push(serde_json::to_string(&peerpods_mock_cloud::admin::instances(&world.cloud)).unwrap());
    let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(said.iter().any(|text| text.contains("sha256:")), "the journal has the launch");
    assert!(logged.contains("aws_smithy_runtime") && logged.contains("RunInstances"), "the SDK's own lines are among them");
    said.push(logged);
    for text in &said {
        for canary in [SECRET, SESSION_TOKEN, USER_DATA, USER_DATA_BASE64] {
            assert!(!text.contains(canary), "{canary} stands in {text}");
        }
    }
}
