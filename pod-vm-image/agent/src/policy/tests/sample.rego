# In the manner of genpolicy's output: rules that compare each container with the pod's specification, and the specification as data.
package agent_policy

import future.keywords.every
import future.keywords.if
import future.keywords.in

default AllowRequestsFailingPolicy := true

default CreateContainerRequest := false
default ExecProcessRequest := false
default RemoveContainerRequest := true
default SetPolicyRequest := false
default WriteStreamRequest := false

CreateContainerRequest := {"ops": ops, "allowed": true} if {
	is_null(input.string_user)
	count(input.shared_mounts) == 0
	is_null(input.OCI.Hooks)
	is_null(input.OCI.Linux.Seccomp)
	count(input.OCI.Linux.Resources.Devices) == 0

	some index, container in policy_data.containers
	print("CreateContainerRequest: trying container", index)
	container.sandbox_pidns == input.sandbox_pidns
	container.OCI.Version == input.OCI.Version
	container.OCI.Root.Readonly == input.OCI.Root.Readonly
	print("CreateContainerRequest: process")
	allow_process(container.OCI.Process, input.OCI.Process)
	print("CreateContainerRequest: annotations")
	every key, value in input.OCI.Annotations {
		container.OCI.Annotations[key] == value
	}
	print("CreateContainerRequest: mounts")
	matches := {match | some mount in input.OCI.Mounts; match = allow_mount(container.OCI.Mounts, mount)}
	count(matches) == count(input.OCI.Mounts)
	print("CreateContainerRequest: storages")
	count(container.storages) == count(input.storages)
	every storage in input.storages {
		allow_storage(container.storages, storage)
	}
	ops := concat_op_if_not_null([], state_allows(input.container_id, index))
}

allow_process(p_process, i_process) if {
	p_process.Args == i_process.Args
	p_process.Cwd == i_process.Cwd
	p_process.Terminal == i_process.Terminal
	p_process.User.UID == i_process.User.UID
	every variable in i_process.Env {
		allow_variable(p_process.Env, variable)
	}
}

allow_variable(variables, variable) if variable in variables

allow_variable(_, variable) if {
	some pattern in policy_data.request_defaults.CreateContainerRequest.allow_env_regex
	regex.match(replace(pattern, "$(ip_p)", policy_data.common.ip_p), variable)
}

allow_mount(mounts, i_mount) := index if {
	some index, p_mount in mounts
	p_mount.destination == i_mount.destination
	p_mount.type_ == i_mount.type_
	p_mount.options == i_mount.options
	regex.match(replace(p_mount.source, "$(sfprefix)", policy_data.common.sfprefix), i_mount.source)
}

allow_storage(storages, i_storage) if {
	some p_storage in storages
	p_storage.driver == i_storage.driver
	p_storage.source == i_storage.source
	p_storage.fstype == i_storage.fstype
	p_storage.fs_group == i_storage.fs_group
	p_storage.shared == i_storage.shared
}

state_allows(key, value) := action if {
	not data.pstate[key]
	action := {"op": "add", "path": concat("/", ["/pstate", key]), "value": value}
}

state_allows(key, value) := null if {
	data.pstate[key] == value
}

concat_op_if_not_null(ops, op) := ops if op == null

concat_op_if_not_null(ops, op) := array.concat(ops, [op]) if op != null

ExecProcessRequest if {
	is_null(input.string_user)
	container := policy_data.containers[data.pstate[input.container_id]]
	some command in container.exec_commands
	command == input.process.Args
}

RemoveContainerRequest := {"ops": [{"op": "remove", "path": concat("/", ["/pstate", input.container_id])}], "allowed": true}

policy_data := {
	"common": {"ip_p": "[0-9]{1,5}", "sfprefix": "^/run/kata-containers/shared/containers/[0-9a-z]+-[0-9a-f]{16}-"},
	"containers": [
		{
			"OCI": {
				"Version": "1.1.0",
				"Process": {"Terminal": false, "User": {"UID": 65535}, "Args": ["/pause"], "Env": [], "Cwd": "/"},
				"Root": {"Readonly": true},
				"Mounts": [],
				"Annotations": {"io.kubernetes.cri.container-type": "sandbox"},
			},
			"storages": [],
			"sandbox_pidns": false,
			"exec_commands": [],
		},
		{
			"OCI": {
				"Version": "1.1.0",
				"Process": {
					"Terminal": false,
					"User": {"UID": 1000},
					"Args": ["/bin/server", "--port", "8080"],
					"Env": ["PATH=/usr/bin:/bin", "MODE=production"],
					"Cwd": "/srv",
				},
				"Root": {"Readonly": false},
				"Mounts": [{"destination": "/etc/hosts", "source": "$(sfprefix)hosts$", "type_": "bind", "options": ["rbind", "ro"]}],
				"Annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "server"},
			},
			"storages": [{
				"driver": "image_guest_pull",
				"source": "registry.example/server@sha256:0a1b",
				"fstype": "overlay",
				"fs_group": null,
				"shared": false,
			}],
			"sandbox_pidns": false,
			"exec_commands": [["/bin/probe", "--live"]],
		},
	],
	"request_defaults": {"CreateContainerRequest": {"allow_env_regex": ["^SERVER_PORT=$(ip_p)$"]}},
}
