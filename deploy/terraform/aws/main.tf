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
  inputs = sha256(join("", [for file in ["Cargo.lock", "pod-vm-image/recipe/pins.toml"] : filesha256("${local.repository}/${file}")]))
  tags   = merge(var.tags, { "peerpods:cluster" = var.cluster })
}

data "aws_region" "here" {}

data "aws_caller_identity" "me" {}

data "aws_partition" "here" {}
