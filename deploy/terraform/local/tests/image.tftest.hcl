# The module as a person uses it, with a build that takes no minutes.

variables {
  image_folder = "./.test-image"
  state_dir    = "/tmp/machines"
  build        = "sh -c 'mkdir -p \"$0\" && touch \"$0/manifest.json\"'"
}

run "builds_into_the_folder" {
  command = apply

  assert {
    condition     = fileexists("${output.image}/manifest.json")
    error_message = "the build did not write into ${output.image}"
  }

  assert {
    condition     = strcontains(output.settings, "image = \"${output.image}\"") && strcontains(output.settings, "kind = \"local\"")
    error_message = "the settings do not name the image: ${output.settings}"
  }
}
