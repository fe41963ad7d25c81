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

