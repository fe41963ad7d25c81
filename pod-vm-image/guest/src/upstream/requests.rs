//! What must be changed in a request on its way from a shim to Kata's agent.
//!
//! | request | change | why |
//! |---|---|---|
//! | CreateSandbox | no name servers | the agent would put the pod's over this machine's, and images are pulled with those |
//! | CreateContainer | the pod's network namespace | the agent runs containers in its own unless the request names another |
//! | CreateContainer | what `image_guest_pull` says of the container's type | our shim leaves it to the annotations, the agent knows the sandbox by it |
//! | CreateContainer | options that begin with `peerpods.` left out | they are our own agent's |
//! | CreateContainer, ExecProcess | a group that is to be looked up in the image becomes 0 | the agent does not look; containerd takes 0 where an image names none |
//!
//! The first two are what Cloud API Adaptor does. A request that asks for what Kata's agent cannot do is answered here, by name. All
//! others, and these where nothing is to be changed, pass as they came. Policies see the changed request.

use std::collections::BTreeMap;

use peerpods_network::POD_NETNS;
use peerpods_protos::agent::{CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest, Storage};
use peerpods_protos::oci::{LinuxNamespace, Process, Spec};
use peerpods_protos::user::FROM_IMAGE;
use protobuf::Message;
use serde_json::json;

const SERVICE: &str = "grpc.AgentService";
const NETWORK: &str = "network";
const GUEST_PULL: &str = "image_guest_pull";
/// By which Kata's agent tells a sandbox from its containers.
const CONTAINER_TYPES: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
const OUR_OPTIONS: &str = "peerpods.";
const JOINED: &str = "peerpods.pid-namespace-of=";

/// A request that Kata's agent does not get.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Refused {
    /// Not the protobuf of its method.
    #[error("{method}: the request is malformed")]
    Malformed {
        /// Which.
        method: &'static str,
    },
    /// The pod's network cannot be put into it.
    #[error("CreateContainer: the specification has no linux section, so the container would not be in the pod's network")]
    NoLinux,
    /// The image's user by name, or by a number whose groups the image knows.
    #[error(
        "{method}: the process's user is named by the image, which Kata's agent does not look up; set runAsUser to a number, or use an \
         image without the upstream profile"
    )]
    User {
        /// Which.
        method: &'static str,
    },
    /// `kubectl debug --target`.
    #[error("CreateContainer: Kata's agent cannot share the processes of one container; use shareProcessNamespace: true")]
    PidNamespace,
}

/// What to send in the place of a request; `None` for the request as it came.
pub(super) fn adapt(service: &str, method: &str, payload: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
    match (service, method) {
        (SERVICE, "CreateSandbox") => change("CreateSandbox", payload, |request: &mut CreateSandboxRequest| {
            request.dns.clear();
            Ok(())
        }),
        (SERVICE, "CreateContainer") => change("CreateContainer", payload, create_container),
        (SERVICE, "ExecProcess") => change("ExecProcess", payload, |request: &mut ExecProcessRequest| match request.process.as_mut() {
            Some(process) => users("ExecProcess", process),
            None => Ok(()),
        }),
        _ => Ok(None),
    }
}

fn change<M: Message + Clone + PartialEq>(
    method: &'static str,
    payload: &[u8],
    act: impl FnOnce(&mut M) -> Result<(), Refused>,
) -> Result<Option<Vec<u8>>, Refused> {
    let malformed = || Refused::Malformed { method };
    let came = M::parse_from_bytes(payload).map_err(|_| malformed())?;
    let mut request = came.clone();
    act(&mut request)?;
    if request == came {
        return Ok(None);
    }
    request.write_to_bytes().map(Some).map_err(|_| malformed())
}

fn create_container(request: &mut CreateContainerRequest) -> Result<(), Refused> {
    let spec = request.OCI.as_mut().ok_or(Refused::NoLinux)?;
    join_pod_network(spec)?;
    if let Some(process) = spec.Process.as_mut() {
        users("CreateContainer", process)?;
    }
    let types = CONTAINER_TYPES.iter().filter_map(|key| Some((*key, spec.Annotations.get(*key)?.as_str())));
    let types: BTreeMap<&str, &str> = types.collect();
    request.storages.iter_mut().try_for_each(|storage| options(storage, &types))
}

/// Takes away whatever network the request names: the node does not choose it.
fn join_pod_network(spec: &mut Spec) -> Result<(), Refused> {
    let linux = spec.Linux.as_mut().ok_or(Refused::NoLinux)?;
    linux.Namespaces.retain(|namespace| namespace.Type != NETWORK);
    linux.Namespaces.push(LinuxNamespace { Type: NETWORK.to_owned(), Path: POD_NETNS.to_owned(), ..Default::default() });
    Ok(())
}

fn users(method: &'static str, process: &mut Process) -> Result<(), Refused> {
    let Some(user) = process.User.as_mut() else { return Ok(()) };
    if user.UID == FROM_IMAGE {
        return Err(Refused::User { method });
    }
    if user.GID == FROM_IMAGE {
        user.GID = 0;
    }
    user.AdditionalGids.retain(|gid| *gid != FROM_IMAGE);
    Ok(())
}

fn options(storage: &mut Storage, types: &BTreeMap<&str, &str>) -> Result<(), Refused> {
    if storage.driver_options.iter().any(|option| option.starts_with(JOINED)) {
        return Err(Refused::PidNamespace);
    }
    storage.driver_options.retain(|option| !option.starts_with(OUR_OPTIONS));
    if storage.driver == GUEST_PULL {
        let empty = format!("{GUEST_PULL}={}", json!({ "metadata": {} }));
        for option in storage.driver_options.iter_mut().filter(|option| **option == empty) {
            *option = format!("{GUEST_PULL}={}", json!({ "metadata": types }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerpods_protos::oci::{Linux, User};
    use protobuf::MessageField;

    /// As one of Kata's shims sends it.
    fn container() -> CreateContainerRequest {
        let mut spec = Spec::new();
        spec.Annotations.insert("io.kubernetes.cri.container-type".to_owned(), "container".to_owned());
        let mut linux = Linux::new();
        linux.Namespaces =
            ["ipc", "uts", "mount"].map(|kind| LinuxNamespace { Type: kind.to_owned(), ..Default::default() }).into_iter().collect();
        spec.Linux = MessageField::some(linux);
        let user = User { UID: 1000, GID: 1000, AdditionalGids: vec![7], ..Default::default() };
        spec.Process = MessageField::some(Process { User: MessageField::some(user), Args: vec!["sh".to_owned()], ..Default::default() });
        let mut request = CreateContainerRequest::new();
        request.container_id = "c1".to_owned();
        request.OCI = MessageField::some(spec);
        let metadata = r#"image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"container"}}"#;
        request.storages = vec![Storage { driver: GUEST_PULL.to_owned(), driver_options: vec![metadata.to_owned()], ..Default::default() }];
        // A field that a newer shim knows.
        request.special_fields.mut_unknown_fields().add_varint(900, 5);
        request
    }

    fn changed(method: &str, request: &impl Message) -> Option<Vec<u8>> {
        adapt(SERVICE, method, &request.write_to_bytes().expect("bytes")).expect("allowed")
    }

    fn created(request: &CreateContainerRequest) -> CreateContainerRequest {
        CreateContainerRequest::parse_from_bytes(&changed("CreateContainer", request).expect("changed")).expect("valid")
    }

    fn refused(method: &str, request: &impl Message) -> Refused {
        adapt(SERVICE, method, &request.write_to_bytes().expect("bytes")).expect_err("refused")
    }

    #[test]
    fn container_of_katas_shim_gets_the_pods_network_and_nothing_else() {
        let request = container();
        let mut expected = request.clone();
        let namespaces = &mut expected.OCI.as_mut().expect("spec").Linux.as_mut().expect("linux").Namespaces;
        namespaces.push(LinuxNamespace { Type: NETWORK.to_owned(), Path: "/run/peerpods/netns/pod".to_owned(), ..Default::default() });
        assert_eq!(created(&request), expected);
        assert_eq!(changed("CreateContainer", &expected), None, "as it came, byte for byte");
    }

    #[test]
    fn the_node_does_not_choose_a_network() {
        let mut request = container();
        let linux = request.OCI.as_mut().expect("spec").Linux.as_mut().expect("linux");
        for path in ["", "/proc/1/ns/net"] {
            linux.Namespaces.insert(0, LinuxNamespace { Type: NETWORK.to_owned(), Path: path.to_owned(), ..Default::default() });
        }
        let networks: Vec<String> =
            created(&request).OCI.Linux.Namespaces.iter().filter(|n| n.Type == NETWORK).map(|n| n.Path.clone()).collect();
        assert_eq!(networks, [POD_NETNS]);
        request.OCI.as_mut().expect("spec").Linux = MessageField::none();
        assert_eq!(refused("CreateContainer", &request), Refused::NoLinux);
        request.OCI = MessageField::none();
        assert_eq!(refused("CreateContainer", &request), Refused::NoLinux);
    }

    #[test]
    fn ids_that_only_an_image_can_resolve_are_refused_or_0() {
        let mut request = container();
        let user = |request: &mut CreateContainerRequest, uid, gid| {
            let user = User { UID: uid, GID: gid, AdditionalGids: vec![FROM_IMAGE, 7], ..Default::default() };
            request.OCI.as_mut().expect("spec").Process.as_mut().expect("process").User = MessageField::some(user);
        };
        user(&mut request, 1000, FROM_IMAGE);
        let changed_user = created(&request).OCI.Process.User.clone();
        assert_eq!((changed_user.UID, changed_user.GID, changed_user.AdditionalGids.as_slice()), (1000, 0, &[7_u32][..]));
        user(&mut request, FROM_IMAGE, FROM_IMAGE);
        assert_eq!(refused("CreateContainer", &request), Refused::User { method: "CreateContainer" });
        let mut exec = ExecProcessRequest::new();
        exec.process = request.OCI.Process.clone();
        assert_eq!(refused("ExecProcess", &exec), Refused::User { method: "ExecProcess" });
        exec.process.as_mut().expect("process").User = MessageField::none();
        assert_eq!(changed("ExecProcess", &exec), None);
    }

    #[test]
    fn options_of_our_own_shim_become_katas() {
        let storage = |options: &[&str]| {
            let mut request = container();
            request.storages[0].driver_options = options.iter().map(|option| (*option).to_owned()).collect();
            request.OCI.as_mut().expect("spec").Annotations.insert(CONTAINER_TYPES[0].to_owned(), "sandbox".to_owned());
            request
        };
        let pause = created(&storage(&[r#"image_guest_pull={"metadata":{}}"#, "peerpods.config=sha256:00"]));
        assert_eq!(pause.storages[0].driver_options, [r#"image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}"#]);
        assert_eq!(refused("CreateContainer", &storage(&["peerpods.pid-namespace-of=c0"])), Refused::PidNamespace);
    }

    #[test]
    fn sandbox_keeps_all_but_its_name_servers() {
        let mut request = CreateSandboxRequest::new();
        request.hostname = "web".to_owned();
        assert_eq!(changed("CreateSandbox", &request), None);
        let expected = request.clone();
        request.dns = vec!["nameserver 10.96.0.10".to_owned()];
        let bytes = changed("CreateSandbox", &request).expect("changed");
        assert_eq!(CreateSandboxRequest::parse_from_bytes(&bytes).expect("valid"), expected);
    }

    #[test]
    fn other_requests_pass_and_malformed_ones_do_not() {
        assert_eq!(adapt(SERVICE, "CopyFile", b"\xff\xff"), Ok(None));
        assert_eq!(adapt("grpc.Health", "CreateContainer", b"\xff"), Ok(None));
        for method in ["CreateContainer", "CreateSandbox", "ExecProcess"] {
            assert_eq!(adapt(SERVICE, method, b"\xff\xff"), Err(Refused::Malformed { method }));
        }
    }
}
