//! What the policy denies does not happen.

use anyhow::{Result, bail, ensure};
use peerpods_protos::agent::SetPolicyRequest;
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
    let set = |policy: &str| SetPolicyRequest { policy: policy.to_owned(), ..Default::default() };
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
