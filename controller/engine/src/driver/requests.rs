//! Requests of others, answered one at a time between plans.

use peerpods_controller_api::{ClaimId, ClaimKey, InstanceId, PodVmRecord, PodVmState, Record};
use tokio::sync::watch;

use super::{Driver, DriverError};
use crate::handle::{Request, RequestError};
use crate::plan::Write;
use crate::report::report;
use crate::{ClaimSpec, ClaimView, admission};

impl Driver {
    pub(super) async fn answer(&mut self, request: Request) -> Result<(), DriverError> {
        match request {
            Request::Claim(spec, reply) => {
                let result = self.claim(*spec).await?;
                let _ = reply.send(result);
            }
            Request::Get(key, reply) => drop(reply.send(self.view(&key))),
            Request::Watch(key, reply) => {
                let now = self.view(&key);
                let sender = self.watchers.entry(key).or_insert_with(|| watch::channel(now).0);
                let _ = reply.send(sender.subscribe());
            }
            Request::Release(key, reply) => {
                let result = self.release(&key).await?;
                let _ = reply.send(result);
            }
            Request::ReleaseAll(reply) => {
                let mut result = Ok(());
                for key in self.store.records.claims.keys().cloned().collect::<Vec<_>>() {
                    result = result.and(self.release(&key).await?);
                }
                let _ = reply.send(result);
            }
            Request::Report(reply) => drop(reply.send(report(&self.store.records, &self.observed))),
            Request::Delete(id, reply) => {
                let result = self.delete(&id).await?;
                let _ = reply.send(result);
            }
        }
        Ok(())
    }

    async fn delete(&mut self, id: &InstanceId) -> Result<Result<bool, RequestError>, DriverError> {
        let Some(pod_vm) = self.store.records.pod_vms.get(id) else { return Ok(Ok(false)) };
        let is_new = pod_vm.state != PodVmState::Deleting;
        let record = is_new.then(|| Record::PodVm(PodVmRecord { state: PodVmState::Deleting, ..pod_vm.clone() }));
        let result = self.record(record).await?.map(|()| true);
        tracing::info!(instance_id = %id, is_recorded = result.is_ok(), "deletion asked for by an operator");
        Ok(result)
    }

    async fn claim(&mut self, spec: ClaimSpec) -> Result<Result<ClaimView, RequestError>, DriverError> {
        let (key, id) = (spec.key.clone(), ClaimId::from_random((self.parts.random)()));
        let pod = spec.pod.clone();
        let record = match admission::admit_claim(&self.store.records, spec, id) {
            Ok(record) => record,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        if let Err(error) = self.record(record).await? {
            return Ok(Err(error));
        }
        if self.hold.is_none_or(|until| until <= self.now()) {
            self.hold = Some(self.now() + self.parts.timing.window);
        }
        tracing::info!(claim = %key, %pod, "claimed");
        Ok(Ok(self.view(&key)))
    }

    async fn release(&mut self, key: &ClaimKey) -> Result<Result<(), RequestError>, DriverError> {
        let record = admission::admit_release(&self.store.records, key);
        let result = self.record(record).await?;
        tracing::info!(claim = %key, is_recorded = result.is_ok(), "released");
        Ok(result)
    }

    /// Writes what a request asks for. Memory may be stale only after a failure of the Journal: then requests are refused too.
    async fn record(&mut self, record: Option<Record>) -> Result<Result<(), RequestError>, DriverError> {
        if self.store.is_stale() {
            return Ok(Err(RequestError::NotRecorded { detail: "the journal is unavailable".to_owned() }));
        }
        let Some(record) = record else { return Ok(Ok(())) };
        match self.write(&Write::Put(record)).await {
            Ok(()) => Ok(Ok(())),
            Err(error) => {
                let detail = error.to_string();
                self.journal_failed(error)?;
                Ok(Err(RequestError::NotRecorded { detail }))
            }
        }
    }
}
