//! What the policy denies does not happen.

use anyhow::{Result, bail, ensure};
use peerpods_protos::agent::{CreateSandboxRequest, ExecProcessRequest, GetMetricsRequest, ReadStreamRequest, SetPolicyRequest};
use ttrpc::Code;

use crate::world::{Pod, process, rpc, shell};

/// Everything that the tests need, without execs, output, files and another policy.
const CLOSED: &str = "package agent_policy
default CreateContainerRequest := false
CreateContainerRequest if input.OCI.Process.Args[2] == \"head -c 200000 /dev/zero; exit 7\"
default StartContainerRequest := true
default RemoveContainerRequest := true
default WaitProcessRequest := true
default DestroySandboxRequest := true
default ExecProcessRequest := false
default ReadStreamRequest := false
default CopyFileRequest := false
default SetPolicyRequest := false
";

/// Remembers every container and exec that it allows; says their number by what it allows else.
const COUNTING: &str = "package agent_policy
seen := count(data.pstate)
answer := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": sprintf(\"/pstate/%d\", [seen]), \"value\": true}]}
CreateSandboxRequest := answer
CreateContainerRequest := answer
ExecProcessRequest := answer
GetMetricsRequest if seen == 2
default StartContainerRequest := true
default SignalProcessRequest := true
default RemoveContainerRequest := true
default WaitProcessRequest := true
default ReadStreamRequest := true
default DestroySandboxRequest := true
";

/// A rule for output that contradicts itself.
const BROKEN: &str = "package agent_policy
ReadStreamRequest := true if input.len >= 0
ReadStreamRequest := false if input.len >= 0
default CreateContainerRequest := true
default StartContainerRequest := true
default RemoveContainerRequest := true
default WaitProcessRequest := true
default DestroySandboxRequest := true
";

fn set(policy: &str) -> SetPolicyRequest {
    SetPolicyRequest { policy: policy.to_owned(), ..Default::default() }
}

fn exists<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Result<()> {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) if status.code.enum_value_or_default() == Code::ALREADY_EXISTS => Ok(()),
        other => bail!("{other:?}"),
    }
}

pub(crate) async fn refused_duplicates_are_not_remembered() -> Result<()> {
    let pod = Pod::start().await?;
    pod.rpc.set_policy(rpc(), &set(COUNTING)).await?;
    pod.run(&shell("c1", "sleep 1000")).await?;
    let request = ExecProcessRequest {
        container_id: "c1".into(),
        exec_id: "e1".into(),
        process: Some(process(&["/bin/sleep", "1000"])).into(),
        ..Default::default()
    };
    pod.rpc.exec_process(rpc(), &request).await?;
    exists(pod.rpc.create_sandbox(rpc(), &CreateSandboxRequest { sandbox_id: "other".into(), ..Default::default() }).await)?;
    exists(pod.rpc.create_container(rpc(), &shell("c1", "true")).await)?;
    exists(pod.rpc.exec_process(rpc(), &request).await)?;
    pod.rpc.get_metrics(rpc(), &GetMetricsRequest::new()).await?;
    pod.remove("c1").await?;
    pod.destroy().await
}

pub(crate) async fn policy_that_cannot_be_asked_about_output_is_an_error() -> Result<()> {
    let pod = Pod::start().await?;
    pod.rpc.set_policy(rpc(), &set(BROKEN)).await?;
    pod.run(&shell("c1", "echo hello")).await?;
    let request = ReadStreamRequest { container_id: "c1".into(), len: 100, ..Default::default() };
    denied(pod.rpc.read_stdout(rpc(), &request).await, "ReadStreamRequest")?;
    pod.remove("c1").await?;
    pod.destroy().await
}

fn denied<T>(result: ttrpc::Result<T>, rule: &str) -> Result<()> {
    match result {
        Ok(_) => bail!("{rule} was allowed"),
        Err(ttrpc::Error::RpcStatus(status)) => {
            let code = status.code.enum_value_or_default();
            ensure!(code == Code::PERMISSION_DENIED && status.message.contains(&format!("rule {rule} ")), "{code:?} {}", status.message);
            Ok(())
        }
        Err(other) => bail!("{other}"),
    }
}

pub(crate) async fn policy_is_asked_before_anything_happens() -> Result<()> {
    let pod = Pod::start().await?;
    ensure!(pod.rpc.set_policy(rpc(), &set("package agent_policy\nA := :=")).await.is_err());
    pod.rpc.set_policy(rpc(), &set(CLOSED)).await?;
    denied(pod.rpc.set_policy(rpc(), &set("package agent_policy\ndefault ExecProcessRequest := true")).await, "SetPolicyRequest")?;
    denied(pod.rpc.create_container(rpc(), &shell("c1", "echo other")).await, "CreateContainerRequest")?;
    denied(pod.signal("c1", "", 9).await, "SignalProcessRequest")?;

    // More output than a pipe holds: nobody may read it, and the process ends all the same.
    pod.run(&shell("c1", "head -c 200000 /dev/zero; exit 7")).await?;
    denied(pod.exec("c1", "e1", process(&["/bin/true"])).await, "ExecProcessRequest")?;
    let ended = pod.finish("c1", "").await?;
    ensure!(ended.stdout.is_empty() && ended.status == 7, "{ended:?}");
    pod.remove("c1").await?;
    let copied = pod.copy("f", 0o100_644, b"data").await;
    ensure!(copied.is_err_and(|error| format!("{error:#}").contains("rule CopyFileRequest ")));
    pod.destroy().await
}
