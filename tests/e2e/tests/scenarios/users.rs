//! Who a container's process is.

use anyhow::Result;
use peerpods_e2e::{Container, Scenario, Story, scenarios, v1};

const WHO: &str = "id -u; id -g; id -G; echo $HOME; grep Groups /proc/self/status";

const NAMES: &str =
    "a name is looked up by containerd in the image's files, which are in the pod VM alone; Kubernetes itself sends numbers";

const NUMBERS: &str = "containerd looks the group of a user up in the image's files, which are in the pod VM alone; it is given users 1 to 1999 to find, \
    whose groups are then looked up there, and takes group 0 for others: say runAsGroup";

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        an_image_says_user_command_folder_and_variables,
        a_pod_overrides_what_the_image_says,
        a_user_by_number_has_the_groups_of_the_image.differs("other stdout", "\n0 (2 times)", NUMBERS),
        a_user_by_name_is_looked_up_in_the_image.differs("c starts", "no users found", NAMES).differs("c ended", "", NAMES),
        a_user_that_the_image_does_not_have_is_refused,
        supplementary_groups_are_given,
        exec_is_the_same_user_as_the_container,
    ]
}

async fn an_image_says_user_command_folder_and_variables(story: Story) -> Result<()> {
    let pod = story.pod("image").run().await?;
    pod.start(Container::of_image("c", "configured")).await?.ends().await?;
    let script =
        Container::of_image("who", "configured").with(|c| c.command = words(&["/bin/sh", "-c", &format!("{WHO}; pwd; env | sort")]));
    pod.start(script).await?.ends().await?;
    Ok(())
}

async fn a_pod_overrides_what_the_image_says(story: Story) -> Result<()> {
    let pod = story.pod("image").run().await?;
    pod.start(Container::of_image("args", "configured").args(&["from-pod", "two"])).await?.ends().await?;
    let command = Container::of_image("command", "configured").with(|c| c.command = words(&["/bin/echo", "all mine"]));
    pod.start(command).await?.ends().await?;
    let rest = Container::of_image("rest", "configured")
        .with(|c| {
            c.command = words(&["/bin/sh", "-c", &format!("{WHO}; pwd; env | sort")]);
            c.working_dir = "/tmp".to_owned();
        })
        .env("OVERRIDDEN", "pod")
        .user(0, None);
    pod.start(rest).await?.ends().await?;
    Ok(())
}

async fn a_user_by_number_has_the_groups_of_the_image(story: Story) -> Result<()> {
    let pod = story.pod("users").run().await?;
    for (name, user, group) in
        [("known", 1234, None), ("unknown", 4321, None), ("grouped", 1234, Some(7)), ("strange", 4321, Some(4322)), ("other", 2000, None)]
    {
        let who = Container::of_image(name, "configured").with(|c| c.command = words(&["/bin/sh", "-c", WHO])).user(user, group);
        pod.start(who).await?.ends().await?;
    }
    Ok(())
}

async fn a_user_by_name_is_looked_up_in_the_image(story: Story) -> Result<()> {
    let pod = story.pod("users").run().await?;
    // The kubelet itself never sends a name, other clients of the CRI do.
    let who = Container::of_image("c", "configured")
        .with(|c| c.command = words(&["/bin/sh", "-c", WHO]))
        .secured(|security| security.run_as_username = "other".to_owned());
    pod.refuses(who, &[]).await
}

async fn a_user_that_the_image_does_not_have_is_refused(story: Story) -> Result<()> {
    let pod = story.pod("users").run().await?;
    let who = Container::script("c", WHO).secured(|security| security.run_as_username = "nobody-here".to_owned());
    pod.refuses(who, &["no users found"]).await
}

async fn supplementary_groups_are_given(story: Story) -> Result<()> {
    let pod = story.pod("groups").run().await?;
    let groups = |name, image, user| {
        Container::of_image(name, image)
            .with(|c| c.command = words(&["/bin/sh", "-c", WHO]))
            .user(user, Some(3000))
            .secured(|security| security.supplemental_groups = vec![4000, 5000])
    };
    pod.start(groups("plain", "busybox", 1000)).await?.ends().await?;
    pod.start(groups("member", "configured", 1234)).await?.ends().await?;
    let strict = groups("strict", "configured", 1234)
        .secured(|security| security.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into());
    pod.start(strict).await?.ends().await?;
    Ok(())
}

async fn exec_is_the_same_user_as_the_container(story: Story) -> Result<()> {
    let pod = story.pod("exec").run().await?;
    let waiting = Container::waiting("x").config.command;
    let container = pod.start(Container::of_image("c", "configured").with(|c| c.command = waiting)).await?;
    container.says(WHO).await?;
    container.says("env | sort; pwd; touch /etc/x; touch ~/x && echo home").await?;
    Ok(())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
