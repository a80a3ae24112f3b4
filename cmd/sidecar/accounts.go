package main

import (
	"errors"
	"fmt"
)

// account is a credential resource as the product writes it whose documentation this project started from; its settings
// are taken as they are.
type account struct {
	ResourceType string `yaml:"resourceType"`
	ID           string `yaml:"id"`

	ServiceAccountEmail string `yaml:"service-account-email"`
	PrivateKey          secret `yaml:"private-key"`

	Region          string `yaml:"region"`
	AccessKeyID     string `yaml:"access-key-id"`
	SecretAccessKey secret `yaml:"secret-access-key"`
}

// The environment variables of that product.
const (
	boxBackend    = "box_bulk__storage_backend"
	boxGCPAccount = "box_bulk__storage_gcp_service__account"
	boxGCPBucket  = "box_bulk__storage_gcp_bucket"
	boxAWSAccount = "box_bulk__storage_aws_account"
	boxAWSBucket  = "box_bulk__storage_aws_bucket"
)

// applyBox takes the bucket from the environment variables, if the first of them is set. They beat the file.
func (c *config) applyBox(lookup func(string) (string, bool)) error {
	get := func(name string) string {
		value, _ := lookup(name)
		return value
	}
	switch backend := get(boxBackend); backend {
	case "":
		return nil
	case "aws":
		found, err := c.account("AwsAccount", boxAWSAccount, get(boxAWSAccount))
		if err != nil {
			return err
		}
		c.Bucket.Kind = "s3"
		c.Bucket.S3.Bucket = get(boxAWSBucket)
		c.Bucket.S3.Region = found.Region
		c.Bucket.S3.AccessKeyID = found.AccessKeyID
		c.Bucket.S3.SecretAccessKey = found.SecretAccessKey
	case "gcp":
		found, err := c.account("GcpServiceAccount", boxGCPAccount, get(boxGCPAccount))
		if err != nil {
			return err
		}
		c.Bucket.Kind = "gcs"
		c.Bucket.GCS.Bucket = get(boxGCPBucket)
		c.Bucket.GCS.ServiceAccountEmail = found.ServiceAccountEmail
		c.Bucket.GCS.PrivateKey = found.PrivateKey
	default:
		return fmt.Errorf("  %s must be gcp or aws", boxBackend)
	}
	return nil
}

// account finds the account resource that a variable names.
func (c *config) account(resourceType, variable, id string) (*account, error) {
	if id == "" {
		return nil, fmt.Errorf("  %s is missing", variable)
	}
	for i := range c.Accounts {
		if c.Accounts[i].ResourceType == resourceType && c.Accounts[i].ID == id {
			return &c.Accounts[i], nil
		}
	}
	return nil, errors.New("  " + variable + " names no " + resourceType + " under accounts")
}
