"use strict";

// "dev" under `order-service dev`: the page then fills in a demo customer.
const caller = document.getElementById("page").dataset.caller;

window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  // Otherwise the page would send the document to a validator on the internet.
  validatorUrl: null,
  onComplete: () => {
    if (caller === "dev") {
      window.ui.preauthorizeApiKey("userEmail", "user@example.com");
      window.ui.preauthorizeApiKey("userRole", "CUSTOMER");
    }
  },
});
