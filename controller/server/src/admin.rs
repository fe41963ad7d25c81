//! The admin socket: what operators see and may do, as HTTP and JSON on a unix socket of mode 0600.
//!
//! `GET /v1/state` is a [`StateReport`](peerpods_controller_api::report::StateReport), `GET /v1/pod-vms/ID/console` the end of a console,
//! `DELETE /v1/pod-vms/ID` deletes a pod VM, whoever has it. `peerpodctl` speaks it; `curl --unix-socket` does too.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use peerpods_controller_api::InstanceId;
use peerpods_controller_api::report::{CONSOLE_SUFFIX, POD_VM_PATH, STATE_PATH};
use peerpods_engine::{Console, Handle, RequestError};
use tokio::net::UnixListener;

use crate::http::{self, Answer, plain};

/// Serves until dropped.
pub(crate) async fn serve(listener: UnixListener, engine: Handle, console: Option<Arc<dyn Console>>) {
    http::serve(listener, move |request: Request<Incoming>| {
        let (engine, console) = (engine.clone(), console.clone());
        async move { respond(&request, &engine, console.as_deref()).await }
    })
    .await;
}

async fn respond(request: &Request<Incoming>, engine: &Handle, console: Option<&dyn Console>) -> Answer {
    let path = request.uri().path();
    if path == STATE_PATH {
        return match *request.method() {
            Method::GET => state(engine).await,
            _ => plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n"),
        };
    }
    let Some(rest) = path.strip_prefix(POD_VM_PATH) else {
        return plain(StatusCode::NOT_FOUND, format!("try {STATE_PATH}\n"));
    };
    let (id, is_console) = rest.strip_suffix(CONSOLE_SUFFIX).map_or((rest, false), |id| (id, true));
    let Ok(id) = InstanceId::new(id) else { return plain(StatusCode::BAD_REQUEST, "not the name of a pod VM\n") };
    match (request.method(), is_console) {
        (&Method::GET, true) => match console {
            None => plain(StatusCode::NOT_IMPLEMENTED, "this provider has no consoles\n"),
            Some(console) => match console.tail(&id).await {
                Some(text) => plain(StatusCode::OK, text),
                None => plain(StatusCode::NOT_FOUND, format!("there is no console of {id}\n")),
            },
        },
        (&Method::DELETE, false) => match engine.delete(&id).await {
            Ok(true) => plain(StatusCode::ACCEPTED, format!("{id} is being deleted\n")),
            Ok(false) => plain(StatusCode::NOT_FOUND, format!("there is no pod VM {id}\n")),
            Err(error) => unavailable(&error),
        },
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "DELETE a pod VM, or GET its console\n"),
    }
}

async fn state(engine: &Handle) -> Answer {
    match engine.report().await.map(|report| serde_json::to_vec(&report)) {
        Ok(Ok(text)) => {
            let mut response = plain(StatusCode::OK, text);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Ok(Err(error)) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        Err(error) => unavailable(&error),
    }
}

fn unavailable(error: &RequestError) -> Answer {
    plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
}
