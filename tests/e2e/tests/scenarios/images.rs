//! What images bring along.

use anyhow::Result;
use peerpods_e2e::{Container, Scenario, Story, Version, scenarios, v1};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        a_volume_of_the_image_starts_with_its_content,
        a_mount_hides_the_images_volume,
        what_a_container_writes_is_its_own,
        an_image_of_zstd_layers_runs,
        an_image_can_be_a_volume.only(Version::V2).differs(
            "c starts",
            "copy its files in an init container",
            "containerd unpacks such an image on the node, where a pod VM does not see it"
        ),
    ]
}

fn waiting_in_image(name: &str) -> Container {
    let command = Container::waiting("x").config.command;
    Container::of_image(name, "configured").with(|config| config.command = command)
}

async fn a_volume_of_the_image_starts_with_its_content(story: Story) -> Result<()> {
    let pod = story.pod("volume").run().await?;
    let container = pod.start(waiting_in_image("c")).await?;
    container.says("ls -ln /data | awk '{ print $1, $3, $4, $5, $9 }'; cat /data/seed; stat -c '%a %u %g' /data").await?;
    container.says("touch /data/new && ls /data; mount | grep -c ' /data '").await?;
    Ok(())
}

async fn a_mount_hides_the_images_volume(story: Story) -> Result<()> {
    let pod = story.pod("volume").run().await?;
    let scratch = pod.empty_dir("scratch")?;
    let container = pod.start(waiting_in_image("c").mount(&scratch, "/data")).await?;
    container.says("ls /data; touch /data/new; ls /data").await?;
    Ok(())
}

async fn what_a_container_writes_is_its_own(story: Story) -> Result<()> {
    let pod = story.pod("root").run().await?;
    let one = pod.start(Container::waiting("one")).await?;
    let two = pod.start(Container::waiting("two")).await?;
    one.prints("echo mine > /etc/mine; rm /bin/yes; cat /etc/mine", "mine\n").await?;
    two.says("cat /etc/mine; ls /bin/yes").await?;
    one.says("stat -c '%a %u %g %F' / /etc /tmp /root /bin/sh; ls /; umask").await?;
    Ok(())
}

async fn an_image_of_zstd_layers_runs(story: Story) -> Result<()> {
    let pod = story.pod("zstd").run().await?;
    let command = Container::script("x", "cat /of; ls /bin | wc -l").config.command;
    pod.start(Container::of_image("c", "zstd").with(|config| config.command = command)).await?.ends().await?;
    Ok(())
}

async fn an_image_can_be_a_volume(story: Story) -> Result<()> {
    let pod = story.pod("imagevolume").run().await?;
    let image = story.rig().image("configured");
    let mut pull = story.cri().images.clone();
    let spec = v1::ImageSpec { image: image.clone(), ..Default::default() };
    pull.pull_image(v1::PullImageRequest { image: Some(spec.clone()), ..Default::default() }).await?;
    let container = Container::waiting("c").with(|config| {
        config.mounts.push(v1::Mount { container_path: "/image".to_owned(), readonly: true, image: Some(spec), ..Default::default() });
    });
    match pod.try_start(container).await {
        Ok(_) => story.record("c starts", "yes"),
        Err(status) => story.record_error("c starts", &status, &[]),
    }
    Ok(())
}
