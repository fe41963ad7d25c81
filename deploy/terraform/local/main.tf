# The pod VM image in a folder of this machine. Nothing but Terraform itself is needed: terraform_data is built in.

terraform {
  required_version = ">= 1.6"
}

locals {
  repository = abspath("${path.module}/../../..")
  # What an image is made of; a change of any of them builds a new one.
  folders = ["pod-vm-image", "agent-proxy/network", "agent-proxy/protos", "agent-proxy/tunnel"]
  sources = flatten([for folder in local.folders : [for file in fileset("${local.repository}/${folder}", "**/*.{proto,rs,toml}") : "${folder}/${file}"]])
  inputs  = sha256(join("", [for file in concat(["Cargo.lock", "Cargo.toml"], local.sources) : filesha256("${local.repository}/${file}")]))
}

resource "terraform_data" "image" {
  input            = { folder = abspath(var.image_folder) }
  triggers_replace = [local.inputs, abspath(var.image_folder), var.build]

  provisioner "local-exec" {
    working_dir = local.repository
    command     = "${var.build} ${abspath(var.image_folder)}"
  }

  provisioner "local-exec" {
    when        = destroy
    working_dir = self.output.folder
    command     = "rm -f vmlinux initrd uki.efi disk.raw manifest.json; rmdir --ignore-fail-on-non-empty \"$PWD\""
  }
}
