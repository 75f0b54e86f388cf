"use strict";

// "dev" where the service runs by `order-service dev`: there, a demo customer is filled in.
const caller = document.getElementById("page").dataset.caller;

window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  // Without it the page would ask a host on the internet whether the document is valid.
  validatorUrl: null,
  onComplete: () => {
    if (caller === "dev") {
      window.ui.preauthorizeApiKey("userEmail", "user@example.com");
      window.ui.preauthorizeApiKey("userRole", "CUSTOMER");
    }
  },
});
