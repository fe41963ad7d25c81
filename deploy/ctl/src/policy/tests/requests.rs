//! What a node asks of a guest for the pod of the tests, in the form that agents show to policies.

use peerpods_agent::AgentPolicy;
use serde_json::{Value, json};

use super::*;

/// As the guest decides about the first request of a pod.
pub(super) fn asked(rego: &str, rule: &str, input: &Value) -> bool {
    policy(rego).check(rule, input).is_ok()
}

pub(super) fn policy(rego: &str) -> AgentPolicy {
    AgentPolicy::parse(rego).unwrap()
}

/// In a pod whose second container runs.
pub(super) fn running() -> AgentPolicy {
    let policy = policy(&agent_rego());
    policy.check("CreateContainerRequest", &sandbox()).unwrap();
    policy.check("CreateContainerRequest", &create()).unwrap();
    policy
}

/// The manifest's second container as our shim asks for it, in the form that agents show to policies.
pub(super) fn create() -> Value {
    let copy = |name: &str| format!("/run/kata-containers/shared/containers/{CONTAINER}-0000000000000007-{name}");
    json!({
        "container_id": CONTAINER, "exec_id": CONTAINER, "string_user": null, "devices": [], "shared_mounts": [], "sandbox_pidns": false,
        "storages": [
            {"driver": "image_guest_pull", "driver_options": ["image_guest_pull={\"metadata\":{}}"], "fstype": "overlay",
                "source": format!("registry.example.org/shop/web@{DIGEST}"), "options": [], "fs_group": null,
                "mount_point": format!("/run/kata-containers/{CONTAINER}/rootfs")},
            {"driver": "local", "source": "local", "fstype": "local", "options": ["mode=0777"], "fs_group": null, "driver_options": [],
                "mount_point": format!("/run/kata-containers/shared/containers/passthrough/{SANDBOX}/rootfs/local/cache")},
            {"driver": "ephemeral", "source": "tmpfs", "fstype": "tmpfs", "options": [], "fs_group": null, "driver_options": [],
                "mount_point": "/run/kata-containers/sandbox/ephemeral/scratch"},
            {"driver": "local", "source": "local", "fstype": "local", "options": ["mode=0777"], "fs_group": null, "driver_options": [],
                "mount_point": "/run/kata-containers/sandbox/ephemeral/scratch/web"},
            {"driver": "local", "source": "local", "fstype": "local", "options": ["mode=0755"], "fs_group": null,
                "driver_options": ["peerpods.copy-up=/srv/data"],
                "mount_point": format!("/run/kata-containers/shared/containers/{CONTAINER}-0000000000000009-data")},
        ],
        "OCI": {
            "Version": "1.2.1", "Hooks": null, "Hostname": "shop",
            "Root": {"Path": format!("/run/kata-containers/{CONTAINER}/rootfs"), "Readonly": true},
            "Process": {
                "Terminal": false, "Cwd": "/srv", "NoNewPrivileges": true, "Args": ["/bin/web", "--listen", ":8080"],
                "User": {"UID": 1000, "GID": 1000, "AdditionalGids": [1000], "Username": ""},
                "Env": [
                    "PATH=/usr/bin:/bin", "LANG=C.UTF-8", "HOSTNAME=shop", "POD_NAME=shop", "PASSWORD=sealed.aa.bb.cc",
                    "GREETING=it's \"open\": \\o/ $(x)", "DB_SERVICE_HOST=db.example.org", "SELF=web", "KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT_HTTPS=443",
                    "KUBERNETES_PORT=tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
                ],
                "Capabilities": {"Bounding": ["CAP_NET_BIND_SERVICE"], "Effective": ["CAP_NET_BIND_SERVICE"], "Permitted": [], "Inheritable": [], "Ambient": []},
            },
            "Annotations": {
                "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "web",
                "io.kubernetes.cri.image-name": format!("registry.example.org/shop/web:1.2@{DIGEST}"),
                "io.kubernetes.cri.sandbox-name": "shop", "io.kubernetes.cri.sandbox-namespace": "retail",
                "io.kubernetes.cri.sandbox-id": SANDBOX, "io.katacontainers.pkg.oci.container_type": "pod_container",
                "peerpods.io/class": "confidential", "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
            },
            "Mounts": [
                {"destination": "/proc", "source": "proc", "type_": "proc", "options": []},
                {"destination": "/dev/shm", "source": "/run/kata-containers/sandbox/shm", "type_": "bind", "options": ["rbind"]},
                {"destination": "/etc/hosts", "source": copy("hosts"), "type_": "bind", "options": ["rbind"]},
                {"destination": "/etc/shop.d", "source": copy("shop.d"), "type_": "bind", "options": ["rbind", "rprivate", "ro"]},
                {"destination": "/var/cache/shop", "type_": "local", "options": ["rbind"],
                    "source": format!("/run/kata-containers/shared/containers/passthrough/{SANDBOX}/rootfs/local/cache")},
                {"destination": "/tmp/", "source": "/run/kata-containers/sandbox/ephemeral/scratch/web", "type_": "bind", "options": ["rbind", "rw"]},
                {"destination": "/srv/data", "source": copy("data"), "type_": "bind", "options": ["rbind"]},
                {"destination": "/etc/rules", "source": copy("rules"), "type_": "bind", "options": ["rbind", "ro"]},
                {"destination": "/sys", "source": "sysfs", "type_": "sysfs", "options": ["nosuid", "ro"]},
            ],
            "Linux": linux(),
        },
    })
}

/// What the kubelet asks of the kernel for every container.
pub(super) fn linux() -> Value {
    let masked = [
        "/proc/asound",
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ];
    json!({
        "UIDMappings": [], "GIDMappings": [], "Sysctl": {}, "RootfsPropagation": "", "Devices": [], "IntelRdt": null, "MountLabel": "",
        "CgroupsPath": "/peerpods/a", "Resources": {"Devices": [], "CPU": {"Shares": 2}},
        "Namespaces": [{"Type": "ipc", "Path": ""}, {"Type": "uts", "Path": ""}, {"Type": "mount", "Path": ""}],
        "MaskedPaths": masked,
        "ReadonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        "Seccomp": {"DefaultAction": "SCMP_ACT_ERRNO", "Architectures": [], "Flags": [], "Syscalls": [
            {"Names": ["read"], "Action": "SCMP_ACT_ALLOW", "ErrnoRet": null, "Args": []},
            {"Names": ["clone3"], "Action": "SCMP_ACT_ERRNO", "ErrnoRet": {"Errnoret": 38}, "Args": []},
        ]},
    })
}

pub(super) fn sandbox() -> Value {
    let mut request = create();
    let rootfs = format!("/run/kata-containers/{SANDBOX}/rootfs");
    request["container_id"] = SANDBOX.into();
    request["storages"] = json!([{"driver": "image_guest_pull", "source": "pause", "mount_point": rootfs, "fstype": "overlay", "options": [],
        "driver_options": ["image_guest_pull={\"metadata\":{}}"]}]);
    let oci = &mut request["OCI"];
    oci["Root"]["Path"] = rootfs.into();
    oci["Annotations"] = json!({
        "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-name": "shop", "io.kubernetes.cri.sandbox-namespace": "retail",
        "io.kubernetes.cri.sandbox-id": SANDBOX,
        "io.kubernetes.cri.podsandbox.image-name": "registry.k8s.io/pause:3.10", "nerdctl/network-namespace": "/var/run/netns/cni-1",
    });
    oci["Process"] = json!({
        "Terminal": false, "Cwd": "/", "NoNewPrivileges": true, "Args": ["/pause"], "User": {"UID": 65535, "GID": 65535}, "Capabilities": null,
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    });
    oci["Mounts"] = json!([
        {"destination": "/dev/shm", "source": "/run/kata-containers/sandbox/shm", "type_": "bind", "options": ["rbind"]},
        {"destination": "/etc/resolv.conf", "type_": "bind", "options": ["rbind", "ro"],
            "source": format!("/run/kata-containers/shared/containers/{SANDBOX}-a57b4aa19ce9bc78-resolv.conf")},
    ]);
    oci["Linux"]["Sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647",
        "net.core.somaxconn": "1024"});
    request
}

pub(super) fn with(request: &Value, list: &str, value: &Value) -> Value {
    let mut request = request.clone();
    request.pointer_mut(list).unwrap().as_array_mut().unwrap().push(value.clone());
    request
}
