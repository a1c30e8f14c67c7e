// The document's address is relative, so that the page works behind a path prefix.
SwaggerUIBundle({
  url: '../api/v1/swagger.json',
  dom_id: '#swagger-ui',
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
