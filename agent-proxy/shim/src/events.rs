//! Events for containerd, in order. While containerd is away they wait; it asks for the state of everything when it is back, so what a
//! full queue or a very long absence loses is only history.

use std::time::Duration;

use containerd_shim::event::Event;
use containerd_shim_protos::protobuf::MessageDyn;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::context::with_timeout;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::clock;

/// Events that may wait: some hundred containers' lives.
const QUEUE: usize = 1024;
const ANSWER: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// How long one event is tried.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the shim's end may wait for the queue.
const FLUSH: Duration = Duration::from_secs(3);

/// Where events go.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Envelope>,
    namespace: String,
}

/// The task that sends them.
#[derive(Debug)]
pub struct Publisher(JoinHandle<()>);

impl Events {
    /// A queue to containerd's ttrpc socket.
    pub fn new(address: &str, namespace: &str) -> (Self, Publisher) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let address = if address.contains("://") { address.to_owned() } else { format!("unix://{address}") };
        let task = tokio::spawn(publish(address, receiver));
        (Self { queue, namespace: namespace.to_owned() }, Publisher(task))
    }

    /// Queues an event; waits while the queue is full.
    pub async fn send<E: Event>(&self, event: E) {
        let mut envelope = Envelope::new();
        envelope.topic = event.topic();
        envelope.namespace.clone_from(&self.namespace);
        envelope.timestamp = Some(clock::now()).into();
        let value = match <dyn MessageDyn>::write_to_bytes_dyn(&event) {
            Ok(value) => value,
            Err(error) => return tracing::error!(%error, topic = envelope.topic, "an event cannot be encoded"),
        };
        envelope.event = Some(Any { type_url: event.descriptor_dyn().full_name().to_owned(), value, ..Default::default() }).into();
        if self.queue.send(envelope).await.is_err() {
            tracing::warn!("an event came after the end of the queue");
        }
    }
}

impl Publisher {
    /// Waits until what is queued is sent, within a limit; all [`Events`] must be gone.
    pub async fn flush(self) {
        if timeout(FLUSH, self.0).await.is_err() {
            tracing::warn!("containerd does not take events; the last ones are lost");
        }
    }
}

async fn publish(address: String, mut queue: mpsc::Receiver<Envelope>) {
    let mut client = None;
    while let Some(envelope) = queue.recv().await {
        let give_up = Instant::now() + PATIENCE;
        let topic = envelope.topic.clone();
        let mut request = ForwardRequest::new();
        request.envelope = Some(envelope).into();
        while let Err(error) = forward(&address, &mut client, &request).await {
            client = None;
            if Instant::now() > give_up {
                tracing::error!(error, topic, "containerd did not take an event");
                break;
            }
            sleep(PAUSE).await;
        }
    }
}

async fn forward(address: &str, client: &mut Option<EventsClient>, request: &ForwardRequest) -> Result<(), String> {
    if client.is_none() {
        *client = Some(EventsClient::new(Client::connect(address).await.map_err(|error| error.to_string())?));
    }
    let Some(client) = client else { return Ok(()) };
    let nanos = i64::try_from(ANSWER.as_nanos()).unwrap_or(i64::MAX);
    client.forward(with_timeout(nanos), request).await.map(drop).map_err(|error| error.to_string())
}
