//! What is mounted into containers: the kubelet's volumes, and the files that containerd makes itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{Container, Running, Scenario, Story, eventually_async, scenarios};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        hosts_hostname_and_resolv_conf_are_the_pods,
        an_empty_dir_is_shared_by_containers,
        a_memory_empty_dir_has_its_size,
        shared_memory_is_the_pods,
        a_config_map_is_read_and_its_update_seen,
        a_key_removed_from_a_config_map_is_gone,
        a_secret_is_read_and_its_update_seen,
        a_projected_token_rotates,
        a_downward_api_volume_and_variables_are_read,
        a_sub_path_shows_a_part_of_a_volume,
        an_fs_group_may_write_its_volume,
        a_volume_of_many_files_arrives_whole,
        a_read_only_mount_refuses_writes,
    ]
}

/// Waits until a script in the container prints this.
pub(super) async fn comes_to_print(container: &Running, script: &str, expected: &str) -> Result<()> {
    eventually_async(&format!("{script:?} prints {expected:?}"), Duration::from_secs(30), || async {
        let answer = container.exec(&["/bin/sh", "-c", script], 10).await?;
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        ensure!(text == expected, "{text:?} {:?}", String::from_utf8_lossy(&answer.stderr));
        Ok(())
    })
    .await
}

async fn hosts_hostname_and_resolv_conf_are_the_pods(story: Story) -> Result<()> {
    let pod = story.pod("names").run().await?;
    let container = pod.start(Container::waiting("c")).await?;
    container.says("cat /etc/hosts").await?;
    container.says("cat /etc/resolv.conf; stat -c '%a %u %g' /etc/resolv.conf /etc/hosts /etc/hostname").await?;
    container.prints("hostname; cat /etc/hostname; echo $HOSTNAME", "names\nnames\nnames\n").await?;
    container.prints("echo '1.2.3.4 mine' >> /etc/hosts && tail -n 1 /etc/hosts", "1.2.3.4 mine\n").await
}

async fn an_empty_dir_is_shared_by_containers(story: Story) -> Result<()> {
    let pod = story.pod("shared").run().await?;
    let scratch = pod.empty_dir("scratch")?;
    let writer =
        Container::script("writer", "stat -c '%a %u %g' /in; umask 022; echo hello > /in/file; mkfifo /in/pipe; ln -s file /in/link")
            .mount(&scratch, "/in");
    pod.start(writer).await?.ends().await?;
    let reader = pod.start(Container::waiting("reader").mount(&scratch, "/out")).await?;
    reader.prints("cat /out/file /out/link; stat -c '%F %a' /out/pipe", "hello\nhello\nfifo 644\n").await?;
    let other = pod.start(Container::waiting("other").mount(&scratch, "/both")).await?;
    other.prints("echo more >> /both/file; rm /both/link; ls /both", "file\npipe\n").await?;
    reader.prints("cat /out/file; ls /out", "hello\nmore\nfile\npipe\n").await
}

async fn a_memory_empty_dir_has_its_size(story: Story) -> Result<()> {
    let pod = story.pod("memory").run().await?;
    let volume = story.kubelet().memory_dir(pod.uid(), "fast", 2048)?;
    let container = pod.start(Container::waiting("c").mount(&volume, "/fast")).await?;
    container.prints("stat -f -c %T /fast; df -k /fast | awk 'NR == 2 { print $2 }'; stat -c %a /fast", "tmpfs\n2048\n777\n").await?;
    container.says("dd if=/dev/zero of=/fast/x bs=1k count=4096 2>&1 | grep -c 'No space'; wc -c < /fast/x").await?;
    let other = pod.start(Container::waiting("other").mount(&volume, "/slow")).await?;
    other.prints("ls /slow; rm /slow/x; df -k /slow | awk 'NR == 2 { print $2 }'", "x\n2048\n").await
}

async fn shared_memory_is_the_pods(story: Story) -> Result<()> {
    let pod = story.pod("shm").run().await?;
    let one = pod.start(Container::waiting("one")).await?;
    let two = pod.start(Container::waiting("two")).await?;
    one.prints("echo shared > /dev/shm/x; df -k /dev/shm | awk 'NR == 2 { print $2 }'; stat -c %a /dev/shm", "65536\n1777\n").await?;
    two.prints("cat /dev/shm/x", "shared\n").await
}

async fn a_config_map_is_read_and_its_update_seen(story: Story) -> Result<()> {
    let pod = story.pod("config").run().await?;
    let volume = pod.config_map("settings", &[("app.conf", "level = 1\n"), ("dir/deep.conf", "deep = 1\n")])?;
    let container = pod.start(Container::waiting("c").mount_read_only(&volume, "/config")).await?;
    container
        .prints("cd /config; cat app.conf dir/deep.conf; ls; readlink app.conf", "level = 1\ndeep = 1\napp.conf\ndir\n..data/app.conf\n")
        .await?;
    container.says("stat -L -c '%a %u %g %F' /config /config/app.conf; touch /config/x").await?;
    volume.write(&[("app.conf", "level = 2\n"), ("dir/deep.conf", "deep = 2\n"), ("new", "new\n")])?;
    comes_to_print(&container, "cd /config; cat app.conf dir/deep.conf new; ls", "level = 2\ndeep = 2\nnew\napp.conf\ndir\nnew\n").await?;
    // A process that holds the folder sees every later revision too.
    volume.write(&[("app.conf", "level = 3\n"), ("dir/deep.conf", "deep = 3\n"), ("new", "new\n")])?;
    comes_to_print(&container, "cat /config/app.conf", "level = 3\n").await
}

async fn a_key_removed_from_a_config_map_is_gone(story: Story) -> Result<()> {
    let pod = story.pod("config").run().await?;
    let volume = pod.config_map("settings", &[("kept", "1\n"), ("removed", "1\n")])?;
    let container = pod.start(Container::waiting("c").mount_read_only(&volume, "/config")).await?;
    container.prints("ls /config", "kept\nremoved\n").await?;
    volume.write(&[("kept", "2\n")])?;
    comes_to_print(&container, "cat /config/kept", "2\n").await?;
    container.says("cat /config/removed").await?;
    container.says("ls /config").await?;
    container.says("cd /config; ls -A | sed 's/^[.][.]2.*/revision/' | sort").await?;
    Ok(())
}

async fn a_secret_is_read_and_its_update_seen(story: Story) -> Result<()> {
    let pod = story.pod("secret").run().await?;
    let volume = pod.secret("password", &[("user", "admin"), ("password", "hunter2\n")])?;
    let container = pod.start(Container::waiting("c").mount_read_only(&volume, "/secret").user(1000, None)).await?;
    container.prints("cat /secret/user /secret/password", "adminhunter2\n").await?;
    volume.write(&[("user", "admin"), ("password", "correct horse\n")])?;
    comes_to_print(&container, "cat /secret/password", "correct horse\n").await
}

async fn a_projected_token_rotates(story: Story) -> Result<()> {
    let pod = story.pod("token").run().await?;
    let at = "/var/run/secrets/kubernetes.io/serviceaccount";
    let files = |token| [("token", token), ("ca.crt", "certificate\n"), ("namespace", "default")];
    let volume = story.kubelet().secret(pod.uid(), "kubernetes.io~projected", "kube-api-access", &files("first"))?;
    let container = pod.start(Container::waiting("c").mount_read_only(&volume, at)).await?;
    container
        .prints(
            &format!("cd {at}; cat token; echo; cat ca.crt namespace; echo; ls"),
            "first\ncertificate\ndefault\nca.crt\nnamespace\ntoken\n",
        )
        .await?;
    for token in ["second", "third"] {
        volume.write(&files(token))?;
        comes_to_print(&container, &format!("cat {at}/token"), token).await?;
    }
    Ok(())
}

async fn a_downward_api_volume_and_variables_are_read(story: Story) -> Result<()> {
    let pod = story.pod("downward").run().await?;
    let files = [("labels", "app=\"web\"\n"), ("annotations", "note=\"a\\nb\"\n")];
    let volume = story.kubelet().secret(pod.uid(), "kubernetes.io~downward-api", "podinfo", &files)?;
    let address = pod.addresses().await?.first().context("an address")?.to_string();
    let container = Container::waiting("c")
        .mount_read_only(&volume, "/podinfo")
        .env("POD_NAME", pod.name())
        .env("POD_IP", &address)
        .env("CPU_LIMIT", "2");
    let container = pod.start(container).await?;
    container.says("cat /podinfo/labels /podinfo/annotations; echo $POD_NAME $POD_IP $CPU_LIMIT").await?;
    container.prints("ip -4 addr show eth0 | grep -c \"inet $POD_IP/\"", "1\n").await?;
    volume.write(&[("labels", "app=\"db\"\n"), ("annotations", "")])?;
    comes_to_print(&container, "cat /podinfo/labels /podinfo/annotations", "app=\"db\"\n").await
}

async fn a_sub_path_shows_a_part_of_a_volume(story: Story) -> Result<()> {
    let pod = story.pod("subpath").run().await?;
    let settings = pod.config_map("settings", &[("one", "1\n"), ("two", "2\n")])?;
    let scratch = pod.empty_dir("scratch")?;
    // The kubelet makes the folder, and puts nothing in it.
    scratch.folder("part")?;
    let file = story.kubelet().sub_path(pod.uid(), &settings, "settings", "c", "one")?;
    let folder = story.kubelet().sub_path(pod.uid(), &scratch, "scratch", "c", "part")?;
    let container = Container::waiting("c").mount_read_only(&file, "/etc/one.conf").mount(&folder, "/part").mount(&scratch, "/whole");
    let container = pod.start(container).await?;
    container.prints("cat /etc/one.conf; ls /part", "1\n").await?;
    container.prints("echo written > /part/new; cat /whole/part/new; ls /whole", "written\npart\n").await?;
    // The kubelet's documentation: a file mounted with subPath sees no updates.
    settings.write(&[("one", "changed\n"), ("two", "2\n")])?;
    container.prints("cat /etc/one.conf", "1\n").await
}

async fn an_fs_group_may_write_its_volume(story: Story) -> Result<()> {
    let pod = story.pod("fsgroup").run().await?;
    let scratch = pod.empty_dir("scratch")?;
    scratch.give_to_group(2000)?;
    let secret = pod.secret("key", &[("key", "k\n")])?;
    secret.give_to_group(2000)?;
    let container = Container::waiting("c")
        .user(1000, Some(1000))
        .secured(|security| security.supplemental_groups = vec![2000])
        .mount(&scratch, "/scratch")
        .mount_read_only(&secret, "/key");
    let container = pod.start(container).await?;
    container.prints("stat -c '%a %u %g' /scratch; echo x > /scratch/x; stat -c '%u %g' /scratch/x", "2777 0 2000\n1000 2000\n").await?;
    container.says("id -G; cat /key/key; stat -L -c '%a %u %g' /key/key").await?;
    Ok(())
}

async fn a_volume_of_many_files_arrives_whole(story: Story) -> Result<()> {
    let pod = story.pod("many").run().await?;
    let names: Vec<String> = (0..200).map(|i| format!("file-{i:03}")).collect();
    // More than a MiB in all, which is a ConfigMap's own limit.
    let contents: Vec<String> = (0..200).map(|i| format!("{i} ").repeat(1200)).collect();
    let files: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(contents.iter().map(String::as_str)).collect();
    let volume = pod.config_map("many", &files)?;
    let container = pod.start(Container::waiting("c").mount_read_only(&volume, "/many")).await?;
    container.says("ls /many | wc -l; cat /many/* | sha256sum").await?;
    Ok(())
}

async fn a_read_only_mount_refuses_writes(story: Story) -> Result<()> {
    let pod = story.pod("readonly").run().await?;
    let scratch = pod.empty_dir("scratch")?;
    let container = Container::waiting("c").mount_read_only(&scratch, "/read").mount(&scratch, "/write");
    let container = pod.start(container).await?;
    container.says("touch /read/x; touch /write/y && ls /read").await?;
    Ok(())
}
