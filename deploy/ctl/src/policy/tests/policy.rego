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
default ReadStreamRequest := false
default RemoveContainerRequest := true
default RemoveStaleVirtiofsShareMountsRequest := true
default ReseedRandomDevRequest := true
default ResumeContainerRequest := true
default SetPolicyRequest := false
default SignalProcessRequest := true
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

CreateSandboxRequest if {
	count(input.kernel_modules) == 0
	input.guest_hook_path == ""
	every storage in input.storages {
		storage.driver == "ephemeral"
		is_guest_path(storage.mount_point)
	}
}

CreateContainerRequest if {
	is_null(input.string_user)
	is_null(input.OCI.Hooks)
	count(input.devices) == 0
	count(input.shared_mounts) == 0
	allows_shared_processes
	regex.match("^/run/kata-containers/[0-9A-Za-z._-]+/rootfs$", input.OCI.Root.Path)

	some container in policy_data.containers
	print("CreateContainerRequest: trying", container.name)
	allows_annotations(container, input.OCI.Annotations)
	print("CreateContainerRequest: process")
	allows_process(container, input.OCI.Process)
	print("CreateContainerRequest: root")
	container.OCI.Root.Readonly == input.OCI.Root.Readonly
	print("CreateContainerRequest: image")
	allows_image(container, input.storages)
	print("CreateContainerRequest: mounts")
	every mount in input.OCI.Mounts {
		allows_mount(container, mount)
	}
}

# Only what is listed; it runs as one of the containers would.
ExecProcessRequest if {
	is_null(input.string_user)
	input.process.Args in policy_data.exec_commands
	some container in policy_data.containers
	allows_user(container, input.process.User)
	allows_privileges(container, input.process)
	every variable in input.process.Env {
		allows_variable(container, variable)
	}
}

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

allows_variable(_, variable) if {
	some pattern in policy_data.common.env_patterns
	regex.match(pattern, variable)
}

# One image, by its digest; beside it only empty volumes.
allows_image(container, storages) if {
	images := [storage | some storage in storages; storage.driver == "image_guest_pull"]
	count(images) == 1
	regex.match(container.image, images[0].source)
	every storage in storages {
		allows_storage(storage)
	}
}

allows_storage(storage) if {
	storage.driver == "image_guest_pull"
	regex.match("^/run/kata-containers/[0-9A-Za-z._-]+/rootfs$", storage.mount_point)
}

allows_storage(storage) if {
	storage.driver in ["ephemeral", "local"]
	is_guest_path(storage.mount_point)
}

allows_mount(_, mount) if {
	mount.type_ in ["cgroup", "cgroup2", "devpts", "mqueue", "proc", "sysfs", "tmpfs"]
	mount.destination in policy_data.common.kernel_mounts
}

allows_mount(container, mount) if {
	mount.type_ in ["bind", "local"]
	mount.destination in container.mounts
	is_guest_path(mount.source)
}

is_guest_path(path) if {
	regex.match("^/run/kata-containers/(sandbox|shared/containers)/", path)
	not climbs(path)
}

climbs(path) if ".." in split(path, "/")

policy_data := {
  "allow_input": false,
  "allow_output": true,
  "common": {
    "annotations": "^(io\\.kubernetes\\.(cri|container|pod)\\.|io\\.katacontainers\\.|nerdctl/)",
    "copy": "^/run/kata-containers/shared/containers/[0-9a-f]{64}-[0-9a-f]{16}-",
    "env_patterns": [
      "^HOSTNAME=[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
      "^[A-Z_][A-Z0-9_]*_SERVICE_HOST=[0-9a-f.:]+$",
      "^[A-Z_][A-Z0-9_]*_SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]{1,5}$",
      "^[A-Z_][A-Z0-9_]*_PORT=(tcp|udp|sctp)://[0-9a-f.:\\[\\]]+$",
      "^[A-Z_][A-Z0-9_]*_PORT_[0-9]{1,5}_(TCP|UDP|SCTP)=(tcp|udp|sctp)://[0-9a-f.:\\[\\]]+$",
      "^[A-Z_][A-Z0-9_]*_PORT_[0-9]{1,5}_(TCP|UDP|SCTP)_(PROTO=(tcp|udp|sctp)|PORT=[0-9]{1,5}|ADDR=[0-9a-f.:]+)$"
    ],
    "kernel_mounts": [
      "/dev",
      "/dev/mqueue",
      "/dev/pts",
      "/dev/shm",
      "/proc",
      "/sys",
      "/sys/fs/cgroup"
    ],
    "namespace": "^retail$",
    "pod": "^shop$"
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
      "env_patterns": [
        "^PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin$",
        "^PATH=/bin:/sbin:/usr/bin:/usr/sbin$"
      ],
      "image": "^pause$",
      "image_name": "^$",
      "mounts": [
        "/dev/shm",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf"
      ],
      "name": "sandbox"
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
      "env_patterns": [
        "^PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin$"
      ],
      "image": "^registry\\.example\\.org/tools(:[0-9A-Za-z_.-]+)?@sha256:1111111111111111111111111111111111111111111111111111111111111111$",
      "image_name": "^registry\\.example\\.org/tools(:[0-9A-Za-z_.-]+)?@sha256:1111111111111111111111111111111111111111111111111111111111111111$",
      "mounts": [
        "/dev/shm",
        "/dev/termination-log",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/var/run/secrets/kubernetes.io/serviceaccount"
      ],
      "name": "prepare"
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
            "GREETING=it's \"open\": \\o/ $(x)",
            "LANG=C.UTF-8",
            "PATH=/usr/bin:/bin",
            "POD_NAME=shop"
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
      "env_patterns": [
        "^PASSWORD=sealed\\.[0-9A-Za-z_-]+\\.[0-9A-Za-z_-]+\\.[0-9A-Za-z_-]+$"
      ],
      "image": "^registry\\.example\\.org/shop/web(:[0-9A-Za-z_.-]+)?@sha256:2222222222222222222222222222222222222222222222222222222222222222$",
      "image_name": "^registry\\.example\\.org/shop/web(:[0-9A-Za-z_.-]+)?@sha256:2222222222222222222222222222222222222222222222222222222222222222$",
      "mounts": [
        "/dev/shm",
        "/dev/termination-log",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/shop.d",
        "/var/cache/shop",
        "/var/run/secrets/kubernetes.io/serviceaccount"
      ],
      "name": "web"
    }
  ],
  "copied_files": [
    "hostname",
    "hosts",
    "resolv\\.conf",
    "termination-log"
  ],
  "copied_trees": [
    "serviceaccount",
    "shop",
    "shop\\.d"
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
  "share_processes": false
}
