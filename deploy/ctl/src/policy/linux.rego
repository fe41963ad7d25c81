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

