# What the node may ask of this pod's VM: the containers of the pod's manifest as they are written there, and nothing beside them.
# A request without a line here is denied. The rules are the same for all pods; policy_data at the end is this pod.
package agent_policy

import future.keywords.every
import future.keywords.if
import future.keywords.in

default AddARPNeighborsRequest := true
default CloseStdinRequest := true
default CopyFileRequest := false
default CreateContainerRequest := false
default CreateSandboxRequest := false
default DestroySandboxRequest := true
default ExecProcessRequest := false
default GetDiagnosticDataRequest := true
default GetMetricsRequest := true
default GetOOMEventRequest := true
default GuestDetailsRequest := true
default ListInterfacesRequest := true
default ListRoutesRequest := true
default OnlineCPUMemRequest := true
default PauseContainerRequest := true
default PortForwardRequest := false
default ReadStreamRequest := false
default RemoveContainerRequest := true
default RemoveStaleVirtiofsShareMountsRequest := true
default ReseedRandomDevRequest := true
default ResumeContainerRequest := true
default SetPolicyRequest := false
default SignalProcessRequest := false
default StartContainerRequest := true
default StatsContainerRequest := true
default TtyWinResizeRequest := true
default UpdateContainerRequest := true
default UpdateEphemeralMountsRequest := true
default UpdateInterfaceRequest := true
default UpdateRoutesRequest := true
default VolumeStatsRequest := true
default WaitProcessRequest := true
default WriteStreamRequest := false

# Output of containers, which the node then sees.
ReadStreamRequest if policy_data.allow_output

WriteStreamRequest if policy_data.allow_input

# A connection from the node to what listens in the pod.
PortForwardRequest if input.port in policy_data.forwarded_ports

# As the kubelet ends containers: TERM, KILL, or what the image or the manifest has in place of TERM.
SignalProcessRequest if input.signal in policy_data.common.signals

SignalProcessRequest if {
	input.exec_id in ["", input.container_id]
	input.signal in container_of(input.container_id).signals
}

CreateSandboxRequest if {
	count(input.kernel_modules) == 0
	input.guest_hook_path == ""
	every storage in input.storages {
		storage.mount_point == "/run/kata-containers/sandbox/shm"
		storage.driver == "ephemeral"
		is_tmpfs(storage)
	}
}

# Which container of the manifest an id is, is remembered: exec and signals are judged by it.
CreateContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": concat("/", ["/pstate", input.container_id]), "value": remembered}]} if {
	is_null(input.string_user)
	is_null(input.OCI.Hooks)
	count(input.devices) == 0
	count(input.shared_mounts) == 0
	allows_shared_processes
	is_id(input.container_id)
	is_id(sandbox_id)
	every _, other in data.pstate {
		other.sandbox == sandbox_id
	}
	input.OCI.Root.Path == rootfs

	some index, container in policy_data.containers
	print("CreateContainerRequest: trying", container.name)
	allows_annotations(container, input.OCI.Annotations)
	print("CreateContainerRequest: process")
	allows_process(container, input.OCI.Process)
	print("CreateContainerRequest: root")
	container.OCI.Root.Readonly == input.OCI.Root.Readonly
	print("CreateContainerRequest: image")
	allows_image(container, input.storages)
	print("CreateContainerRequest: mounts")
	allows_mounts(container, input.OCI.Mounts)
	print("CreateContainerRequest: linux")
	allows_linux(container, input.OCI.Linux)
	remembered := {"container": index, "sandbox": sandbox_id}
}

RemoveContainerRequest := {"allowed": true, "ops": [{"op": "remove", "path": concat("/", ["/pstate", input.container_id])}]} if {
	data.pstate[input.container_id]
}

sandbox_id := input.OCI.Annotations["io.kubernetes.cri.sandbox-id"]

rootfs := concat("/", ["/run/kata-containers", input.container_id, "rootfs"])

is_id(text) if regex.match("^[0-9A-Za-z_-]+$", text)

container_of(id) := policy_data.containers[data.pstate[id].container]

# Only what is listed for this container; it runs as the container does.
ExecProcessRequest if {
	is_null(input.string_user)
	container := container_of(input.container_id)
	input.process.Args in container.exec_commands
	input.process.Cwd == container.OCI.Process.Cwd
	allows_user(container, input.process.User)
	allows_privileges(container, input.process)
	has_distinct_names(input.process.Env)
	every variable in input.process.Env {
		allows_exec_variable(container, variable)
	}
}

# containerd adds it where somebody has a terminal.
allows_exec_variable(_, variable) if {
	input.process.Terminal
	variable == "TERM=xterm"
}

allows_exec_variable(container, variable) if allows_variable(container, variable)

CopyFileRequest if {
	input.file_type == "Regular"
	some name in policy_data.copied_files
	regex.match(concat("", [policy_data.common.copy, name, "$"]), input.path)
}

CopyFileRequest if {
	input.file_type != "Symlink"
	is_in_copied_tree(input.path)
}

CopyFileRequest if {
	input.file_type == "Symlink"
	is_in_copied_tree(input.path)
	not startswith(input.symlink_target, "/")
	not climbs(input.symlink_target)
}

is_in_copied_tree(path) if {
	some name in policy_data.copied_trees
	regex.match(concat("", [policy_data.common.copy, name, "(/.+)?$"]), path)
	not climbs(path)
}

allows_shared_processes if not input.sandbox_pidns

allows_shared_processes if policy_data.share_processes

allows_annotations(container, annotations) if {
	every name, _ in annotations {
		regex.match(policy_data.common.annotations, name)
	}
	every name, value in container.OCI.Annotations {
		allows_annotation(container, annotations, name, value)
	}
	regex.match(policy_data.common.pod, annotations["io.kubernetes.cri.sandbox-name"])
	regex.match(policy_data.common.namespace, annotations["io.kubernetes.cri.sandbox-namespace"])

	# The guest tells the node what is in that file.
	object.get(annotations, "io.kubernetes.container.terminationMessagePath", container.termination_log) == container.termination_log
}

allows_annotation(container, annotations, name, _) if {
	name == "io.kubernetes.cri.image-name"
	regex.match(container.image_name, annotations[name])
}

allows_annotation(_, annotations, name, value) if {
	name != "io.kubernetes.cri.image-name"
	annotations[name] == value
}

allows_process(container, process) if {
	process.Args == container.OCI.Process.Args
	process.Cwd == container.OCI.Process.Cwd
	process.Terminal == container.OCI.Process.Terminal
	allows_user(container, process.User)
	allows_privileges(container, process)
	has_distinct_names(process.Env)
	every variable in container.OCI.Process.Env {
		variable in process.Env
	}
	every variable in process.Env {
		allows_variable(container, variable)
	}
}

allows_user(container, user) if {
	every name, value in container.OCI.Process.User {
		user[name] == value
	}
}

# A set of null is that of a privileged container: all.
allows_privileges(container, _) if is_null(container.capabilities)

allows_privileges(container, process) if {
	every name in ["Ambient", "Bounding", "Effective", "Inheritable", "Permitted"] {
		every capability in object.get(capabilities(process), name, []) {
			trim_prefix(capability, "CAP_") in container.capabilities
		}
	}
	allows_escalation(container, process)
}

allows_escalation(container, _) if container.allow_escalation

allows_escalation(_, process) if process.NoNewPrivileges

capabilities(process) := process.Capabilities if not is_null(process.Capabilities)

capabilities(process) := {} if is_null(process.Capabilities)

allows_variable(container, variable) if variable in container.OCI.Process.Env

allows_variable(container, variable) if {
	some pattern in container.env_patterns
	regex.match(pattern, variable)
}

# What the node adds is known by its form, and has no name that the manifest or the image uses.
allows_variable(container, variable) if {
	not name_of(variable) in container.env_names
	some pattern in policy_data.common.env_patterns
	regex.match(pattern, variable)
}

name_of(variable) := name if {
	parts := split(variable, "=")
	name := parts[0]
}

# Of two with one name it would be chance which counts.
has_distinct_names(variables) if {
	count({name_of(variable) | some variable in variables}) == count(variables)
}

# One image, by its digest; beside it the volumes that the container mounts.
allows_image(container, storages) if {
	images := [storage | some storage in storages; storage.driver == "image_guest_pull"]
	count(images) == 1
	regex.match(container.image, images[0].source)
	every storage in storages {
		allows_storage(container, storage)
	}
}

# Without the option that joins the processes of another container.
allows_storage(_, storage) if {
	storage.driver == "image_guest_pull"
	storage.mount_point == rootfs
	every option in storage.driver_options {
		regex.match("^(image_guest_pull|peerpods\\.config)=", option)
	}
}

allows_storage(container, storage) if {
	some allowed in container.storages
	storage.driver == allowed.driver
	is_tmpfs_or_local(storage)
	storage.driver_options == allowed.driver_options
	regex.match(with_ids(allowed.mount_point), storage.mount_point)
	not climbs(storage.mount_point)
}

is_tmpfs_or_local(storage) if {
	storage.driver == "local"
	storage.fstype == "local"
}

is_tmpfs_or_local(storage) if {
	storage.driver == "ephemeral"
	is_tmpfs(storage)
}

is_tmpfs(storage) if {
	storage.fstype == "tmpfs"
	storage.source in ["shm", "tmpfs"]
	not is_bound(storage.options)
}

allows_mounts(container, mounts) if {
	every mount in mounts {
		allows_mount(container, mount)
	}
	every allowed in container.mounts {
		is_mounted(allowed, mounts)
	}
}

is_mounted(allowed, _) if not allowed.required

is_mounted(allowed, mounts) if {
	some mount in mounts
	is_mount_of(allowed, mount)
}

allows_mount(container, mount) if {
	mount.type_ in policy_data.common.kernel_mounts[mount.destination]
	not is_bound(mount.options)
	allows_kernel_options(container, mount)
}

allows_mount(container, mount) if {
	some allowed in container.mounts
	is_mount_of(allowed, mount)
}

is_mount_of(allowed, mount) if {
	trim_right(mount.destination, "/") == allowed.destination
	mount.type_ == allowed.type
	regex.match(with_ids(allowed.source), mount.source)
	not climbs(mount.source)
	every option in mount.options {
		option in policy_data.common.mount_options
	}
	is_as_read_only(allowed, mount.options)
}

is_as_read_only(allowed, _) if not allowed.read_only

is_as_read_only(_, options) if {
	"ro" in options
	not "rw" in options
}

# The kernel's settings are for privileged containers to change.
allows_kernel_options(_, mount) if not mount.type_ in ["cgroup", "cgroup2", "sysfs"]

allows_kernel_options(_, mount) if is_as_read_only({"read_only": true}, mount.options)

allows_kernel_options(container, _) if container.privileged

is_bound(options) if {
	some option in ["bind", "rbind", "remount"]
	option in options
}

with_ids(pattern) := replace(replace(pattern, "$(container)", input.container_id), "$(sandbox)", sandbox_id)

climbs(path) if ".." in split(path, "/")

# What a container gets of the kernel: what its manifest asks for, and nothing that changes what its program sees.
allows_linux(container, linux) if {
	count(linux.UIDMappings) == 0
	count(linux.GIDMappings) == 0
	linux.RootfsPropagation in ["", "private", "rprivate", "slave", "rslave"]
	every namespace in linux.Namespaces {
		namespace.Path == ""
	}
	some own in linux.Namespaces
	own.Type in ["mnt", "mount"]
	every name, value in linux.Sysctl {
		container.sysctls[name] == value
	}
	allows_seccomp(container, linux.Seccomp)
	allows_devices(container, linux)
	every path in array.concat(linux.MaskedPaths, linux.ReadonlyPaths) {
		is_of_kernel(path)
	}
	is_masked(container, linux)
}

# Files of the image are not for the node to hide.
is_of_kernel(path) if {
	regex.match("^/(proc|sys)/", path)
	not climbs(path)
}

is_masked(container, _) if container.unmasked

is_masked(_, linux) if {
	every path in policy_data.common.masked_paths {
		path in linux.MaskedPaths
	}
	every path in policy_data.common.read_only_paths {
		path in linux.ReadonlyPaths
	}
}

# A filter may refuse system calls, and may not have them seem to succeed.
allows_seccomp(_, seccomp) if is_null(seccomp)

allows_seccomp(container, seccomp) if {
	container.seccomp
	seccomp.DefaultAction in honest_actions
	every rule in seccomp.Syscalls {
		rule.Action in honest_actions
		not is_success(rule.ErrnoRet)
	}
}

honest_actions := ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG"]

is_success(errno) if errno.Errnoret == 0

allows_devices(container, _) if container.privileged

allows_devices(_, linux) if {
	every device in linux.Devices {
		[device.Path, device.Type, device.Major, device.Minor] in policy_data.common.devices
	}
	has_no_rules(linux.Resources)
}

has_no_rules(resources) if is_null(resources)

has_no_rules(resources) if count(resources.Devices) == 0

policy_data := {
  "allow_input": false,
  "allow_output": true,
  "common": {
    "annotations": "^(io\\.kubernetes\\.(cri|container|pod)\\.|io\\.katacontainers\\.|nerdctl/|peerpods\\.io/)",
    "copy": "^/run/kata-containers/shared/containers/[0-9a-f]{64}-[0-9a-f]{16}-",
    "devices": [
      [
        "/dev/console",
        "c",
        5,
        1
      ],
      [
        "/dev/full",
        "c",
        1,
        7
      ],
      [
        "/dev/null",
        "c",
        1,
        3
      ],
      [
        "/dev/random",
        "c",
        1,
        8
      ],
      [
        "/dev/tty",
        "c",
        5,
        0
      ],
      [
        "/dev/urandom",
        "c",
        1,
        9
      ],
      [
        "/dev/zero",
        "c",
        1,
        5
      ]
    ],
    "env_patterns": [
      "^HOSTNAME=[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
      "^[A-Z_][A-Z0-9_]*_SERVICE_HOST=[0-9a-f.:]+$",
      "^[A-Z_][A-Z0-9_]*_SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]{1,5}$",
      "^[A-Z_][A-Z0-9_]*_PORT=(tcp|udp|sctp)://[0-9a-f.:\\[\\]]+$",
      "^[A-Z_][A-Z0-9_]*_PORT_[0-9]{1,5}_(TCP|UDP|SCTP)=(tcp|udp|sctp)://[0-9a-f.:\\[\\]]+$",
      "^[A-Z_][A-Z0-9_]*_PORT_[0-9]{1,5}_(TCP|UDP|SCTP)_(PROTO=(tcp|udp|sctp)|PORT=[0-9]{1,5}|ADDR=[0-9a-f.:]+)$"
    ],
    "kernel_mounts": {
      "/dev": [
        "tmpfs"
      ],
      "/dev/mqueue": [
        "mqueue"
      ],
      "/dev/pts": [
        "devpts"
      ],
      "/dev/shm": [
        "tmpfs"
      ],
      "/proc": [
        "proc"
      ],
      "/sys": [
        "sysfs"
      ],
      "/sys/fs/cgroup": [
        "cgroup",
        "cgroup2"
      ]
    },
    "masked_paths": [
      "/proc/acpi",
      "/proc/kcore",
      "/proc/keys",
      "/proc/latency_stats",
      "/proc/sched_debug",
      "/proc/scsi",
      "/proc/timer_list",
      "/proc/timer_stats",
      "/sys/firmware"
    ],
    "mount_options": [
      "bind",
      "nodev",
      "noexec",
      "nosuid",
      "private",
      "rbind",
      "relatime",
      "ro",
      "rprivate",
      "rslave",
      "rw",
      "slave",
      "noatime",
      "nosymfollow"
    ],
    "namespace": "^retail$",
    "pod": "^shop$",
    "read_only_paths": [
      "/proc/bus",
      "/proc/fs",
      "/proc/irq",
      "/proc/sys",
      "/proc/sysrq-trigger"
    ],
    "signals": [
      15,
      9
    ]
  },
  "containers": [
    {
      "OCI": {
        "Annotations": {
          "io.kubernetes.cri.container-type": "sandbox"
        },
        "Process": {
          "Args": [
            "/pause"
          ],
          "Cwd": "/",
          "Env": [],
          "Terminal": false,
          "User": {}
        },
        "Root": {
          "Readonly": true
        }
      },
      "allow_escalation": true,
      "capabilities": [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT"
      ],
      "env_names": [
        "PATH"
      ],
      "env_patterns": [
        "^PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin$",
        "^PATH=/bin:/sbin:/usr/bin:/usr/sbin$"
      ],
      "exec_commands": [],
      "image": "^pause$",
      "image_name": "^$",
      "mounts": [
        {
          "destination": "/dev/shm",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/sandbox/shm$",
          "type": "bind"
        },
        {
          "destination": "/etc/hostname",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-hostname$",
          "type": "bind"
        },
        {
          "destination": "/etc/hosts",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-hosts$",
          "type": "bind"
        },
        {
          "destination": "/etc/resolv.conf",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-resolv\\.conf$",
          "type": "bind"
        }
      ],
      "name": "sandbox",
      "privileged": false,
      "seccomp": true,
      "signals": [],
      "storages": [],
      "sysctls": {
        "net.core.somaxconn": "1024",
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647"
      },
      "termination_log": "",
      "unmasked": true
    },
    {
      "OCI": {
        "Annotations": {
          "io.kubernetes.cri.container-name": "prepare",
          "io.kubernetes.cri.container-type": "container",
          "io.kubernetes.cri.image-name": "registry.example.org/tools@sha256:1111111111111111111111111111111111111111111111111111111111111111"
        },
        "Process": {
          "Args": [
            "/bin/prepare",
            "production"
          ],
          "Cwd": "/",
          "Env": [
            "MODE=production"
          ],
          "Terminal": false,
          "User": {}
        },
        "Root": {
          "Readonly": false
        }
      },
      "allow_escalation": true,
      "capabilities": [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT"
      ],
      "env_names": [
        "MODE"
      ],
      "env_patterns": [
        "^PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin$"
      ],
      "exec_commands": [
        [
          "ls",
          "/srv"
        ]
      ],
      "image": "^registry\\.example\\.org/tools(:[0-9A-Za-z_.-]+)?@sha256:1111111111111111111111111111111111111111111111111111111111111111$",
      "image_name": "^registry\\.example\\.org/tools(:[0-9A-Za-z_.-]+)?@sha256:1111111111111111111111111111111111111111111111111111111111111111$",
      "mounts": [
        {
          "destination": "/var/run/secrets/kubernetes.io/serviceaccount",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-serviceaccount$",
          "type": "bind"
        },
        {
          "destination": "/dev/termination-log",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-termination-log$",
          "type": "bind"
        },
        {
          "destination": "/dev/shm",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/sandbox/shm$",
          "type": "bind"
        },
        {
          "destination": "/etc/hostname",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-hostname$",
          "type": "bind"
        },
        {
          "destination": "/etc/hosts",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-hosts$",
          "type": "bind"
        },
        {
          "destination": "/etc/resolv.conf",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-resolv\\.conf$",
          "type": "bind"
        }
      ],
      "name": "prepare",
      "privileged": false,
      "seccomp": true,
      "signals": [],
      "storages": [],
      "sysctls": {
        "net.core.somaxconn": "1024"
      },
      "termination_log": "/dev/termination-log",
      "unmasked": false
    },
    {
      "OCI": {
        "Annotations": {
          "io.kubernetes.cri.container-name": "web",
          "io.kubernetes.cri.container-type": "container",
          "io.kubernetes.cri.image-name": "registry.example.org/shop/web:1.2@sha256:2222222222222222222222222222222222222222222222222222222222222222"
        },
        "Process": {
          "Args": [
            "/bin/web",
            "--listen",
            ":8080"
          ],
          "Cwd": "/srv",
          "Env": [
            "DB_SERVICE_HOST=db.example.org",
            "GREETING=it's \"open\": \\o/ $(x)",
            "LANG=C.UTF-8",
            "PATH=/usr/bin:/bin",
            "POD_NAME=shop",
            "SELF=web"
          ],
          "Terminal": false,
          "User": {
            "UID": 1000
          }
        },
        "Root": {
          "Readonly": true
        }
      },
      "allow_escalation": false,
      "capabilities": [
        "NET_BIND_SERVICE"
      ],
      "env_names": [
        "DB_SERVICE_HOST",
        "GREETING",
        "LANG",
        "PASSWORD",
        "PATH",
        "POD_NAME",
        "SELF"
      ],
      "env_patterns": [
        "^PASSWORD=sealed\\.[0-9A-Za-z_-]+\\.[0-9A-Za-z_-]+\\.[0-9A-Za-z_-]+$"
      ],
      "exec_commands": [
        [
          "/bin/probe",
          "--live"
        ],
        [
          "ls",
          "/srv"
        ]
      ],
      "image": "^registry\\.example\\.org/shop/web(:[0-9A-Za-z_.-]+)?@sha256:2222222222222222222222222222222222222222222222222222222222222222$",
      "image_name": "^registry\\.example\\.org/shop/web(:[0-9A-Za-z_.-]+)?@sha256:2222222222222222222222222222222222222222222222222222222222222222$",
      "mounts": [
        {
          "destination": "/etc/shop.d",
          "read_only": false,
          "required": true,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-shop\\.d$",
          "type": "bind"
        },
        {
          "destination": "/var/cache/shop",
          "read_only": false,
          "required": true,
          "source": "^/run/kata-containers/shared/containers/(passthrough/)?$(sandbox)/rootfs/local/cache$",
          "type": "local"
        },
        {
          "destination": "/tmp",
          "read_only": false,
          "required": true,
          "source": "^/run/kata-containers/sandbox/ephemeral/scratch/web$",
          "type": "bind"
        },
        {
          "destination": "/etc/rules",
          "read_only": true,
          "required": true,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-rules$",
          "type": "bind"
        },
        {
          "destination": "/srv/data",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-data$",
          "type": "bind"
        },
        {
          "destination": "/var/run/secrets/kubernetes.io/serviceaccount",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-serviceaccount$",
          "type": "bind"
        },
        {
          "destination": "/dev/termination-log",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-termination-log$",
          "type": "bind"
        },
        {
          "destination": "/dev/shm",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/sandbox/shm$",
          "type": "bind"
        },
        {
          "destination": "/etc/hostname",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-hostname$",
          "type": "bind"
        },
        {
          "destination": "/etc/hosts",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-hosts$",
          "type": "bind"
        },
        {
          "destination": "/etc/resolv.conf",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-resolv\\.conf$",
          "type": "bind"
        }
      ],
      "name": "web",
      "privileged": false,
      "seccomp": true,
      "signals": [
        3
      ],
      "storages": [
        {
          "driver": "local",
          "driver_options": [],
          "mount_point": "^/run/kata-containers/shared/containers/(passthrough/)?$(sandbox)/rootfs/local/cache$"
        },
        {
          "driver": "ephemeral",
          "driver_options": [],
          "mount_point": "^/run/kata-containers/sandbox/ephemeral/scratch$"
        },
        {
          "driver": "local",
          "driver_options": [],
          "mount_point": "^/run/kata-containers/sandbox/ephemeral/scratch/web$"
        },
        {
          "driver": "local",
          "driver_options": [
            "peerpods.copy-up=/srv/data"
          ],
          "mount_point": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-data$"
        }
      ],
      "sysctls": {
        "net.core.somaxconn": "1024"
      },
      "termination_log": "/dev/termination-log",
      "unmasked": false
    },
    {
      "OCI": {
        "Annotations": {
          "io.kubernetes.cri.container-name": "logs",
          "io.kubernetes.cri.container-type": "container",
          "io.kubernetes.cri.image-name": "registry.example.org/logs@sha256:3333333333333333333333333333333333333333333333333333333333333333"
        },
        "Process": {
          "Args": [
            "/bin/logs"
          ],
          "Cwd": "/",
          "Env": [],
          "Terminal": false,
          "User": {}
        },
        "Root": {
          "Readonly": false
        }
      },
      "allow_escalation": true,
      "capabilities": [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT"
      ],
      "env_names": [],
      "env_patterns": [
        "^PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin$"
      ],
      "exec_commands": [
        [
          "/bin/ready"
        ],
        [
          "ls",
          "/srv"
        ]
      ],
      "image": "^registry\\.example\\.org/logs(:[0-9A-Za-z_.-]+)?@sha256:3333333333333333333333333333333333333333333333333333333333333333$",
      "image_name": "^registry\\.example\\.org/logs(:[0-9A-Za-z_.-]+)?@sha256:3333333333333333333333333333333333333333333333333333333333333333$",
      "mounts": [
        {
          "destination": "/cache",
          "read_only": true,
          "required": true,
          "source": "^/run/kata-containers/shared/containers/(passthrough/)?$(sandbox)/rootfs/local/cache$",
          "type": "local"
        },
        {
          "destination": "/var/run/secrets/kubernetes.io/serviceaccount",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-serviceaccount$",
          "type": "bind"
        },
        {
          "destination": "/dev/termination-log",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-termination-log$",
          "type": "bind"
        },
        {
          "destination": "/dev/shm",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/sandbox/shm$",
          "type": "bind"
        },
        {
          "destination": "/etc/hostname",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-hostname$",
          "type": "bind"
        },
        {
          "destination": "/etc/hosts",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-hosts$",
          "type": "bind"
        },
        {
          "destination": "/etc/resolv.conf",
          "read_only": false,
          "required": false,
          "source": "^/run/kata-containers/shared/containers/$(container)-[0-9a-f]{16}-resolv\\.conf$",
          "type": "bind"
        }
      ],
      "name": "logs",
      "privileged": false,
      "seccomp": true,
      "signals": [
        10
      ],
      "storages": [
        {
          "driver": "local",
          "driver_options": [],
          "mount_point": "^/run/kata-containers/shared/containers/(passthrough/)?$(sandbox)/rootfs/local/cache$"
        }
      ],
      "sysctls": {
        "net.core.somaxconn": "1024"
      },
      "termination_log": "/dev/termination-log",
      "unmasked": false
    }
  ],
  "copied_files": [
    "hostname",
    "hosts",
    "resolv\\.conf",
    "termination-log"
  ],
  "copied_trees": [
    "rules",
    "serviceaccount",
    "shop\\.d"
  ],
  "forwarded_ports": [
    8080
  ],
  "share_processes": false
}
