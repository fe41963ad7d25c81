use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use peerpods_cloud_api::settings::local::LocalSettings;
use peerpods_cloud_api::{CloudProvider, Instance, InstanceId, InstanceType, LaunchRequest, Launched, OwnerTag, ProviderError};

use crate::machine::{CrashPoints, Host, LOCK_LIMIT, MachineError, Phase, Record, TPM_SETUP_LIMIT};

/// The provider's own deadline: more than waiting for a lock and the longest step of a start together, less than any caller's patience.
const DEADLINE: Duration = Duration::from_secs(90);

const _: () = assert!(DEADLINE.as_secs() > LOCK_LIMIT.as_secs() + TPM_SETUP_LIMIT.as_secs());

/// More would only wait for each other on the processors of a small host.
const STARTS_AT_ONCE: usize = 4;

/// This host as a cloud.
///
/// Machines are not children of the program and outlive it; another `LocalProvider` over the same settings finds them by owner tag.
/// Work goes on in a blocking thread when a call is cancelled or runs into the deadline, as a cloud's would.
#[derive(Debug, Clone)]
pub struct LocalProvider {
    host: Arc<Host>,
}

impl LocalProvider {
    /// Checks the settings; makes and reads nothing. `level = "sandbox"` is refused unless the settings say that it is insecure.
    pub fn new(settings: LocalSettings) -> Result<Self, ProviderError> {
        Ok(Self { host: Arc::new(Host::new(settings)?) })
    }

    /// The same with a hook after every side effect, for tests of what a crash leaves.
    pub fn with_crash_points(settings: LocalSettings, crash_points: CrashPoints) -> Result<Self, ProviderError> {
        Ok(Self { host: Arc::new(Host::new(settings)?.with_crash_points(crash_points)) })
    }

    /// The end of what an instance wrote to its console: the reason, where one has stopped by itself.
    /// Written by the guest: at most 4 KiB, control characters replaced.
    pub async fn console_tail(&self, id: &InstanceId) -> Result<String, ProviderError> {
        let id = id.clone();
        self.blocking(move |host| Ok(host.console_tail(&id)?)).await
    }

    /// Finishes deletes and removes the bridge. An error when instances are left.
    pub async fn cleanup_host(&self) -> Result<(), ProviderError> {
        self.blocking(|host| {
            host.settle()?;
            match host.all()?.len() {
                0 => Ok(()),
                left => Err(ProviderError::Unavailable { detail: format!("{left} local machines are left") }),
            }
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Host) -> Result<T, ProviderError> + Send + 'static,
    ) -> Result<T, ProviderError> {
        let host = Arc::clone(&self.host);
        let work = tokio::task::spawn_blocking(move || work(&host));
        match tokio::time::timeout(DEADLINE, work).await {
            Err(_) => Err(ProviderError::DeadlineExceeded),
            Ok(Err(error)) => Err(ProviderError::Internal { detail: error.to_string() }),
            Ok(Ok(result)) => result,
        }
    }
}

#[async_trait]
impl CloudProvider for LocalProvider {
    async fn verify(&self) -> Result<(), ProviderError> {
        self.blocking(|host| match host.missing().as_slice() {
            [] => Ok(()),
            [root] if root.ends_with("need root") => Err(ProviderError::PermissionDenied { detail: root.clone() }),
            missing => Err(ProviderError::InvalidRequest { detail: missing.join("; ") }),
        })
        .await
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Launched, ProviderError> {
        let request = request.clone();
        self.blocking(move |host| launch(host, &request)).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Instance, ProviderError> {
        let id = id.clone();
        self.blocking(move |host| {
            let record = host.read(&id)?.ok_or(MachineError::NotFound)?;
            if record.phase == Phase::Deleting && host.settle_one(&record)? {
                return Err(ProviderError::NotFound);
            }
            Ok(advance(host, record).instance())
        })
        .await
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), ProviderError> {
        let id = id.clone();
        self.blocking(move |host| Ok(host.delete(&id)?)).await
    }

    async fn list(&self, owner: &OwnerTag) -> Result<Vec<Instance>, ProviderError> {
        let owner = owner.clone();
        self.blocking(move |host| {
            if let Err(error) = host.settle() {
                // They are listed as being deleted until a later call removes them.
                tracing::warn!(error = &error as &dyn std::error::Error, "some deleted machines stay for now");
            }
            let own = host.all()?.into_iter().filter(|record| record.request.owner == owner);
            Ok(own.map(|record| advance(host, record).instance()).collect())
        })
        .await
    }

    async fn instance_types(&self) -> Result<Vec<InstanceType>, ProviderError> {
        Ok(self.host.instance_types())
    }
}

/// Whoever looks at a machine that a killed launch only planned finishes it, as a cloud would by itself; one that does not start is
/// taken back, and the record then says so.
fn advance(host: &Host, record: Record) -> Record {
    if record.phase != Phase::Planned {
        return record;
    }
    host.start_planned(&record.id).unwrap_or_else(|error| {
        tracing::warn!(instance_id = %record.id, error = &error as &dyn std::error::Error, "a planned machine does not start; it is deleted");
        if let Err(error) = host.delete(&record.id) {
            tracing::warn!(instance_id = %record.id, error = &error as &dyn std::error::Error, "it stays for now");
        }
        Record { phase: Phase::Deleting, ..record }
    })
}

/// Starts what was planned, a few at once. What does not start is taken back.
fn launch(host: &Host, request: &LaunchRequest) -> Result<Launched, ProviderError> {
    let planned = host.plan(request)?;
    let next = AtomicUsize::new(0);
    let started = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..planned.len().min(STARTS_AT_ONCE) {
            scope.spawn(|| {
                while let Some(record) = planned.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = host.start(&record.id);
                    if result.is_err()
                        && let Err(error) = host.delete(&record.id)
                    {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(instance_id = %record.id, error, "a machine that did not start stays for now");
                    }
                    started.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    let (mut instances, mut failure) = (Vec::new(), None);
    for result in started.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match result {
            Ok(record) => instances.push(record.instance()),
            Err(error) => failure = Some(ProviderError::from(error)),
        }
    }
    match failure {
        Some(failure) if instances.is_empty() => Err(failure),
        Some(failure) => {
            tracing::warn!(token = %request.token, error = %failure, "only some machines of the launch started");
            Ok(Launched { instances })
        }
        None => Ok(Launched { instances }),
    }
}
