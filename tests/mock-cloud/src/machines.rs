//! Instances as machines of this host: the local provider's, without its way to hand over boot files.

use std::net::Ipv4Addr;
use std::sync::Arc;

use peerpods_cloud_api::settings::local::LocalSettings;
use peerpods_cloud_api::{InstanceId, InstanceState, LaunchRequest, LaunchToken, OwnerTag, Tee};
use peerpods_cloud_local::machine::{Host, MachineError, Phase};

use crate::account::Launch;
use crate::metadata;

/// This host's machines.
#[derive(Debug, Clone)]
pub struct Machines {
    host: Arc<Host>,
}

/// Whose the machines are, for whoever looks at their folder.
const OWNER: &str = "mock-cloud";

impl Machines {
    /// Over these settings. Machines that another mock cloud left in the same folder are deleted: nobody knows them any more.
    pub async fn open(settings: LocalSettings) -> Result<Self, String> {
        let host = Host::new(settings).map_err(|error| say(&error))?.with_metadata_service(metadata::ADDRESS);
        let machines = Self { host: Arc::new(host) };
        machines.clear().await?;
        Ok(machines)
    }

    /// Deletes all of them, and the bridge.
    pub async fn clear(&self) -> Result<(), String> {
        self.blocking(|host| {
            for record in host.all()? {
                host.delete(&record.id)?;
            }
            host.settle()
        })
        .await
    }

    /// Machines that are not started yet, with their addresses.
    pub(crate) async fn plan(&self, launch: &Launch, count: u32) -> Result<Vec<(InstanceId, Ipv4Addr)>, String> {
        let token = format!("{:032x}", fastrand::u128(..));
        let request = LaunchRequest {
            token: LaunchToken::new(token).map_err(|error| error.to_string())?,
            owner: OwnerTag::new(OWNER).map_err(|error| error.to_string())?,
            instance_type: machine_type(launch.instance_type.vcpus).to_owned(),
            zone: None,
            image: None,
            tee: Tee::Sample,
            count,
            user_data: Vec::new(),
        };
        let records = self.blocking(move |host| host.plan(&request)).await?;
        Ok(records.into_iter().map(|record| (record.id, record.address)).collect())
    }

    pub(crate) async fn start(&self, id: InstanceId) -> Result<(), String> {
        self.blocking(move |host| host.start(&id).map(drop)).await
    }

    /// Until it is gone.
    pub(crate) async fn delete(&self, id: InstanceId) -> Result<(), String> {
        self.blocking(move |host| match host.delete(&id) {
            Err(MachineError::NotFound) => Ok(()),
            other => other,
        })
        .await
    }

    pub(crate) async fn is_running(&self, id: InstanceId) -> bool {
        let read = self.blocking(move |host| host.read(&id)).await;
        matches!(read, Ok(Some(record)) if record.phase != Phase::Started || record.instance().state == InstanceState::Running)
    }

    pub(crate) async fn console(&self, id: InstanceId) -> String {
        self.blocking(move |host| host.console_tail(&id)).await.unwrap_or_default()
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Host) -> Result<T, MachineError> + Send + 'static) -> Result<T, String> {
        let host = Arc::clone(&self.host);
        let done = tokio::task::spawn_blocking(move || work(&host)).await.map_err(|error| error.to_string())?;
        done.map_err(|error| say(&error))
    }
}

/// A size of this host for a size of the cloud: what a type promises, no test machine has.
fn machine_type(vcpus: u32) -> &'static str {
    match vcpus {
        0..=2 => "local.small",
        3..=4 => "local.medium",
        _ => "local.large",
    }
}

fn say(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
