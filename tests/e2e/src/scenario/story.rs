//! One telling of a story: the pods that it made and what was seen of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::transcript::Transcript;
use super::{Pod, RunningPod};
use crate::{Cri, Handler, Kubelet, Rig, v1};

/// One telling. Clones are the same telling.
#[derive(Clone)]
pub struct Story {
    shared: Arc<Shared>,
}

struct Shared {
    rig: Arc<Rig>,
    cri: Cri,
    handler: Handler,
    name: &'static str,
    naming: Naming,
    transcript: Mutex<Transcript>,
    /// What has a different value in every telling, and its role.
    roles: Mutex<Vec<(String, String)>>,
    /// Sandboxes to be removed at the end, with their pods' uids.
    pods: Mutex<Vec<(String, String)>>,
}

/// How a pull says which handler the image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Both ways, as a kubelet with the feature RuntimeClassInImageCriApi does.
    Both,
    /// By the annotation `io.containerd.cri.runtime-handler` of the pod, which the kubelet passes on.
    Annotation,
    /// By the field `runtime_handler` of the image specification, which containerd 1.7 does not know.
    Field,
    /// Not at all, as other kubelets do.
    Silent,
    /// There is no pull: the image must be there.
    NoPull,
}

impl Story {
    /// Begins to tell a story; a test that is no scenario cleans up itself.
    pub async fn begin(rig: Arc<Rig>, handler: Handler, name: &'static str) -> Result<Self> {
        Self::begin_with(rig, handler, name, Naming::Both).await
    }

    /// [`Story::begin`] with another way to pull.
    pub async fn begin_with(rig: Arc<Rig>, handler: Handler, name: &'static str, naming: Naming) -> Result<Self> {
        let cri = rig.cri().await?;
        let roles = vec![
            (rig.world().registry_host(), "<registry>".to_owned()),
            (rig.world().folder().display().to_string(), "<node>".to_owned()),
            (rig.cgroup_parent(), "<cgroup>".to_owned()),
        ];
        let shared =
            Shared { rig, cri, handler, name, naming, transcript: Mutex::default(), roles: Mutex::new(roles), pods: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A pod yet to be run.
    pub fn pod(&self, name: &str) -> Pod {
        Pod::new(self, name)
    }

    /// The rig below.
    pub fn rig(&self) -> &Rig {
        &self.shared.rig
    }

    /// The node's kubelet.
    pub fn kubelet(&self) -> &Kubelet {
        self.shared.rig.kubelet()
    }

    /// containerd.
    pub fn cri(&self) -> &Cri {
        &self.shared.cri
    }

    /// Who runs this telling's pods. A story that asks and then acts differently tells two stories: use it for preparations alone.
    pub fn handler(&self) -> Handler {
        self.shared.handler
    }

    /// Writes down what was seen at a step.
    pub fn record(&self, step: &str, value: impl std::fmt::Display) {
        let (step, value) = (self.plain(step), self.plain(&value.to_string()));
        lock(&self.shared.transcript).record(&step, value);
    }

    /// Writes down a failed call: its code, and of its text the phrases that matter; all of the text when one is missing or none is
    /// given.
    pub fn record_error(&self, step: &str, status: &tonic::Status, phrases: &[&str]) {
        let text = self.plain(status.message());
        if !phrases.is_empty() && phrases.iter().all(|phrase| text.contains(phrase)) {
            self.record(step, format!("{:?}: ... {}", status.code(), phrases.join(" ... ")));
        } else {
            self.record(step, format!("{:?}: {text}", status.code()));
        }
    }

    /// From now on this value is called by its role.
    pub fn call(&self, value: &str, role: &str) {
        if !value.is_empty() {
            let mut roles = lock(&self.shared.roles);
            roles.push((value.to_owned(), format!("<{role}>")));
            roles.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        }
    }

    pub(super) fn fail(&self, why: &str) {
        let why = self.plain(why);
        lock(&self.shared.transcript).fail(&why);
    }

    pub(super) fn end(self) -> Transcript {
        lock(&self.shared.transcript).clone()
    }

    /// A uid that no other pod of this run has.
    pub(super) fn uid(&self, pod: &str) -> String {
        use sha2::Digest as _;
        let seed = format!("{} {} {pod} {}", self.shared.name, self.shared.handler.name(), self.shared.rig.world().folder().display());
        let hex = hex::encode(sha2::Sha256::digest(seed));
        format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
    }

    pub(super) fn made(&self, sandbox: &str, uid: &str) {
        lock(&self.shared.pods).push((sandbox.to_owned(), uid.to_owned()));
    }

    /// Stops and removes all pods, as a kubelet does with pods that were deleted.
    pub async fn clean_up(&self) -> Result<()> {
        let pods = std::mem::take(&mut *lock(&self.shared.pods));
        let mut outcome = Ok(());
        for (sandbox, uid) in pods {
            outcome = outcome.and(RunningPod::delete(self, &sandbox).await);
            self.kubelet().forget(&uid);
        }
        outcome
    }

    /// Pulls an image for this telling's handler.
    pub(super) async fn pull(&self, image: &str, sandbox: &v1::PodSandboxConfig) -> Result<(), tonic::Status> {
        if self.shared.naming == Naming::NoPull {
            return Ok(());
        }
        let mut sandbox = sandbox.clone();
        if self.is_named(Naming::Annotation) {
            sandbox.annotations.insert(RUNTIME_HANDLER.to_owned(), self.shared.handler.name().to_owned());
        } else {
            sandbox.annotations.remove(RUNTIME_HANDLER);
        }
        let request = v1::PullImageRequest { image: Some(self.image_spec(image)), auth: None, sandbox_config: Some(sandbox) };
        self.cri().images.clone().pull_image(request).await.map(|_| ())
    }

    /// Pulls an image of the registry for this telling's handler, without a pod.
    pub async fn pull_alone(&self, image: &str) -> Result<()> {
        let image = self.rig().image(image);
        Ok(self.pull(&image, &v1::PodSandboxConfig::default()).await?)
    }

    pub(super) fn image_spec(&self, image: &str) -> v1::ImageSpec {
        let handler = self.shared.handler.name().to_owned();
        let annotation = self.is_named(Naming::Annotation).then(|| (RUNTIME_HANDLER.to_owned(), handler.clone()));
        v1::ImageSpec {
            image: image.to_owned(),
            annotations: annotation.into_iter().collect(),
            user_specified_image: image.to_owned(),
            runtime_handler: if self.is_named(Naming::Field) { handler } else { String::new() },
        }
    }

    fn is_named(&self, way: Naming) -> bool {
        matches!(self.shared.naming, Naming::Both | Naming::NoPull) || self.shared.naming == way
    }

    fn plain(&self, text: &str) -> String {
        lock(&self.shared.roles).iter().fold(text.to_owned(), |text, (value, role)| text.replace(value, role))
    }
}

/// How a kubelet that knows the handler says so at a pull.
pub(super) const RUNTIME_HANDLER: &str = "io.containerd.cri.runtime-handler";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
