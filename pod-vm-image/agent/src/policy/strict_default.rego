# The policy of a pod whose initdata brings no policy.rego. Its owner wants to be asked, so what reaches into a running container is
# denied: processes beside its own, standard input, connections to its ports by way of the node, and files other than those that the
# kubelet makes for every pod. Which containers run is not limited; that takes a policy that knows them. A pod with config maps or secrets as files needs one too.
# It is part of the measured image. A request without a line here is denied.
package agent_policy

default AddARPNeighborsRequest := true
default AddSwapRequest := true
default CloseStdinRequest := true
default CopyFileRequest := false
default CreateContainerRequest := true
default CreateSandboxRequest := true
default DestroySandboxRequest := true
default ExecProcessRequest := false
default GetDiagnosticDataRequest := true
default GetIPTablesRequest := true
default GetMetricsRequest := true
default GetOOMEventRequest := true
default GuestDetailsRequest := true
default ListInterfacesRequest := true
default ListRoutesRequest := true
default MemAgentCompactConfig := true
default MemAgentMemcgConfig := true
default MemHotplugByProbeRequest := true
default OnlineCPUMemRequest := true
default PauseContainerRequest := true
default PortForwardRequest := false
default ReadStreamRequest := true
default RemoveContainerRequest := true
default RemoveStaleVirtiofsShareMountsRequest := true
default ReseedRandomDevRequest := true
default ResizeVolumeRequest := true
default ResumeContainerRequest := true
default SetGuestDateTimeRequest := true
default SetIPTablesRequest := true
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

# <container id>-<16 hexadecimal digits>-<last part of the mount point>: as Kata's shims and ours name a container's own copies.
copied := "^/run/kata-containers/shared/containers/[0-9a-f]{64}-[0-9a-f]{16}-"

CopyFileRequest if {
	input.file_type == "Regular"
	regex.match(concat("", [copied, "(hosts|hostname|resolv\\.conf|termination-log)$"]), input.path)
}

CopyFileRequest if {
	input.file_type != "Symlink"
	is_service_account(input.path)
}

CopyFileRequest if {
	input.file_type == "Symlink"
	is_service_account(input.path)
	not startswith(input.symlink_target, "/")
	not climbs(input.symlink_target)
}

is_service_account(path) if {
	regex.match(concat("", [copied, "serviceaccount(/.+)?$"]), path)
	not climbs(path)
}

climbs(path) if ".." in split(path, "/")
