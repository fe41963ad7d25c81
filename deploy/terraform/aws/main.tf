# From the recipe to an AMI, and the rights and ports that pod VMs need.

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.80"
    }
  }
}

locals {
  repository = abspath("${path.module}/../../..")
  folder     = abspath("${path.module}/image")
  name       = "peerpods-${var.cluster}"
  # What an image is made of; a change of any of them builds and registers a new one.
  folders = ["pod-vm-image", "agent-proxy/network", "agent-proxy/protos", "agent-proxy/tunnel"]
  sources = flatten([for folder in local.folders : [for file in fileset("${local.repository}/${folder}", "**/*.{proto,rs,toml}") : "${folder}/${file}"]])
  inputs  = sha256(join("", [for file in concat(["Cargo.lock", "Cargo.toml"], local.sources) : filesha256("${local.repository}/${file}")]))
  tags    = merge(var.tags, { "peerpods:cluster" = var.cluster })
}

data "aws_region" "here" {}

data "aws_caller_identity" "me" {}

data "aws_partition" "here" {}
