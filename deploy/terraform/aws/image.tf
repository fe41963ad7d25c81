# Build, upload, snapshot, register.

resource "terraform_data" "image" {
  triggers_replace = [local.inputs]

  provisioner "local-exec" {
    working_dir = local.repository
    command     = "cargo xtask image --release --out ${local.folder}"
  }
}

resource "aws_s3_object" "disk" {
  bucket                 = var.bucket
  key                    = "${local.name}/${local.inputs}/disk.raw"
  source                 = "${local.folder}/disk.raw"
  server_side_encryption = "AES256"
  tags                   = local.tags
  depends_on             = [terraform_data.image]

  lifecycle {
    replace_triggered_by = [terraform_data.image]
  }
}

# VM Import reads the object in this role ("Required permissions for VM Import/Export" of its user guide).
resource "aws_iam_role" "import" {
  name = "${local.name}-import"
  tags = local.tags
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "vmie.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "sts:ExternalId" = "vmimport" } }
    }]
  })
}

resource "aws_iam_role_policy" "import" {
  name = "import"
  role = aws_iam_role.import.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = ["s3:GetObject"]
        Resource = "arn:${data.aws_partition.here.partition}:s3:::${var.bucket}/${local.name}/*"
      },
      {
        Effect   = "Allow"
        Action   = ["s3:GetBucketLocation", "s3:ListBucket"]
        Resource = "arn:${data.aws_partition.here.partition}:s3:::${var.bucket}"
      },
      {
        Effect   = "Allow"
        Action   = ["ec2:ModifySnapshotAttribute", "ec2:CopySnapshot", "ec2:RegisterImage", "ec2:Describe*"]
        Resource = "*"
      },
    ]
  })
}

resource "aws_ebs_snapshot_import" "disk" {
  role_name = aws_iam_role.import.name
  tags      = local.tags

  disk_container {
    format = "RAW"
    user_bucket {
      s3_bucket = aws_s3_object.disk.bucket
      s3_key    = aws_s3_object.disk.key
    }
  }

  depends_on = [aws_iam_role_policy.import]

  lifecycle {
    replace_triggered_by = [aws_s3_object.disk]
  }
}

# SEV-SNP wants UEFI ("Find AMD SEV-SNP on Amazon EC2 instances"); the TPM is what vouches for the image.
resource "aws_ami" "pod_vm" {
  name                = "${local.name}-${substr(local.inputs, 0, 12)}"
  description         = "Peerpods pod VM"
  architecture        = "x86_64"
  virtualization_type = "hvm"
  ena_support         = true
  boot_mode           = "uefi"
  tpm_support         = "v2.0"
  imds_support        = "v2.0"
  root_device_name    = "/dev/xvda"
  tags                = local.tags

  ebs_block_device {
    device_name           = "/dev/xvda"
    snapshot_id           = aws_ebs_snapshot_import.disk.id
    volume_type           = "gp3"
    delete_on_termination = true
  }
}
